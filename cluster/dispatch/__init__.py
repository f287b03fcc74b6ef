"""The gateway's side of the workers: sessions, routing, retries, admission, readiness."""
