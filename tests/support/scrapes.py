"""What `/metrics` says, for assertions about resources and outcomes."""

import httpx

from twinflow.cluster.chaos.scrape import Scrape


def scrape(http_url: str) -> Scrape:
    """Read the metrics of a gateway."""
    response = httpx.get(f"{http_url}/metrics", timeout=10.0, trust_env=False)
    assert response.status_code == 200, response.text
    return Scrape.parse(response.text)
