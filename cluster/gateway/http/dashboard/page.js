// The page behind /dashboard. It reads what everybody else can read: /metrics, /server_info, /ready
// and /dashboard/requests, once a second, with the caller's API key if the server wants one. Rates
// and percentiles are differences between two scrapes; nothing is computed on the server.
import { deltas, parseMetrics, quantile, value } from "./metrics.js";
import { chart, labelled, replace, rows, segments, tile } from "./drawing.js";

const PERIOD_MS = 1000;
const KEPT = 300; // scrapes, five minutes
const RATE_SPAN = 10; // scrapes that rates are taken over
const QUANTILE_SPAN = 60; // and percentiles, which need more requests
const PHASES = {
  queue: "#999", prefill: "#2a6fdb", transfer: "#e69f00",
  first_decode: "#27a36a", decode: "#27a36a", preempted: "#c0392b", recompute: "#9b59b6",
};
const OTHER = "#bbb";
const $ = (id) => document.getElementById(id);
const scrapes = [];
const lines = new Map();

let key = keyFromAddress() ?? sessionStorage.getItem("twinflow-key") ?? "";

// `/dashboard#key=...` logs in; what follows # is never sent to a server, nor kept in the address.
function keyFromAddress() {
  const found = new URLSearchParams(location.hash.slice(1)).get("key");
  if (found !== null) history.replaceState(null, "", location.pathname);
  return found;
}

async function get(path) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const response = await fetch(path, { headers, cache: "no-store" });
  if (response.status === 401) throw new Refused();
  return response;
}

class Refused extends Error {}

async function look() {
  const [metrics, info, ready, requests] = await Promise.all(
    ["metrics", "server_info", "ready", "dashboard/requests"].map(get));
  const readiness = await ready.json();
  say(readiness.ready ? "ready" : `not ready: ${readiness.reason}`, !readiness.ready);
  if (!info.ok) return; // the workers are starting; the state says so
  const served = await info.json();
  scrapes.push({ at: performance.now() / 1000, samples: parseMetrics(await metrics.text()) });
  if (scrapes.length > KEPT) scrapes.shift();
  $("model").textContent = `${served.model.name}, twinflow ${served.version}`;
  showNow();
  showWorkers(served.workers);
  showRequests((await requests.json()).requests);
}

function say(text, bad) {
  $("state").textContent = text;
  $("state").classList.toggle("bad", bad);
}

function since(span) {
  const last = scrapes.at(-1);
  return deltas(scrapes.at(-1 - Math.min(span, scrapes.length - 1)), last);
}

function ms(seconds) {
  if (seconds === null) return "-";
  return seconds < 1 ? `${(1000 * seconds).toPrecision(3)} ms` : `${seconds.toPrecision(3)} s`;
}

function number(found, digits = 0) {
  return found === null ? "-" : found.toFixed(digits);
}

function showNow() {
  const now = scrapes.at(-1).samples, rate = since(RATE_SPAN), latest = since(QUANTILE_SPAN);
  const of = (name, q) => quantile(latest, name, q);
  const ttft = "vllm:time_to_first_token_seconds", gap = "vllm:inter_token_latency_seconds";
  const figures = {
    "requests in flight": number(value(now, "twinflow:requests_in_flight")),
    "running": number(value(now, "vllm:num_requests_running")),
    "waiting": number(value(now, "vllm:num_requests_waiting")),
    "tokens/s out": number(rate.perSecond("vllm:generation_tokens_total"), 1),
    "prompt tokens/s": number(rate.perSecond("vllm:prompt_tokens_total"), 1),
    "TTFT p50": ms(of(ttft, 0.5)), "TTFT p99": ms(of(ttft, 0.99)),
    "TBT p50": ms(of(gap, 0.5)), "TBT p99": ms(of(gap, 0.99)),
    "failed": number(value(now, "twinflow:request_failures_total") ?? 0),
    "refused": number(value(now, "vllm:admission_rejections_total") ?? 0),
  };
  replace($("tiles"), Object.entries(figures).map(([name, text]) => tile(name, text)));
  record("tokens/s out", [rate.perSecond("vllm:generation_tokens_total")], (v) => number(v, 1));
  record("TTFT p50 and p99", [of(ttft, 0.5), of(ttft, 0.99)], ms);
  record("TBT p50 and p99", [of(gap, 0.5), of(gap, 0.99)], ms);
  replace($("charts"), [...lines].map(([name, { points, show }]) => chart(name, points, KEPT, show)));
}

function record(name, found, show) {
  const line = lines.get(name) ?? { points: [], show };
  line.points.push(found);
  if (line.points.length > KEPT) line.points.shift();
  lines.set(name, line);
}

function showWorkers(workers) {
  const now = scrapes.at(-1).samples, rate = since(RATE_SPAN);
  const heads = ["worker", "role", "state", "running", "waiting", "KV in use", "prompt tokens/s",
    "tokens/s", "steps/s", "hand-off MB/s", "device"];
  replace($("workers"), rows(heads, workers.map(({ worker_id: worker, role, up, ranks, lanes }) => {
    const its = { worker }, kv = value(now, "vllm:kv_cache_usage_perc", its);
    const per = (name, digits = 1) => number(rate.perSecond(name, its), digits);
    const draining = value(now, "twinflow:worker_draining", its);
    const bytes = rate.perSecond("twinflow:handoff_bytes_total", its);
    return [
      worker, role,
      { text: up ? (draining ? "draining" : "up") : "away", bad: !up },
      number(value(now, "vllm:num_requests_running", its)),
      number(value(now, "vllm:num_requests_waiting", its)),
      { title: kv === null ? "" : `${(100 * kv).toFixed(1)} %`, bar: [["#2a6fdb", kv ?? 0]] },
      per("twinflow:worker_prompt_tokens_total"), per("twinflow:worker_generation_tokens_total"),
      per("twinflow:worker_steps_total"), number(bytes === null ? null : bytes / 1e6, 2),
      device(now, its, ranks, lanes),
    ];
  })));
}

// How the device is shared between prompts and decoding, where it is.
function device(now, its, ranks, lanes) {
  const part = (lane) => value(now, "twinflow:lane_processors", { ...its, lane }) ?? 0;
  const prefill = part("prefill"), decode = part("decode"), all = prefill + decode;
  if (!all) return ranks > 1 ? `${ranks} ranks` : "one lane";
  return {
    title: `${lanes.backend}: ${prefill} for prompts, ${decode} for decoding`,
    bar: [[PHASES.prefill, prefill / all], [PHASES.decode, decode / all]],
  };
}

function showRequests(found) {
  const names = Object.keys(PHASES).filter((name) => name !== "first_decode");
  replace($("legend"), names.flatMap((name) => labelled(name, PHASES[name])));
  const oldest = Math.max(1, ...found.map(({ age_s: age }) => age));
  replace($("requests"), rows(
    ["request", "state", "prompt", "output", "TTFT", "where", "timeline"],
    found.map((request) => {
      const stay = request.attempts.at(-1);
      const route = stay ? [stay.prefill, stay.decode].filter(Boolean).join(" → ") : "";
      const moves = request.attempts.length > 1 ? ` (attempt ${request.attempts.length})` : "";
      return [
        request.id.slice(0, 13),
        { text: request.state, bad: request.state === "failed" },
        String(request.prompt_tokens), String(request.output_tokens),
        ms(request.first_token_s), route + moves,
        { wide: true, title: request.phases.map(([n, s]) => `${n} ${ms(s)}`).join(", "),
          bar: segments(request, oldest, (name) => PHASES[name] ?? OTHER) },
      ];
    })));
}

async function loop() {
  try {
    await look();
    $("login").hidden = true;
  } catch (error) {
    if (error instanceof Refused) $("login").hidden = false;
    say(error instanceof Refused ? "an API key is needed" : `no answer: ${error.message}`, true);
  }
  setTimeout(loop, PERIOD_MS);
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value;
  sessionStorage.setItem("twinflow-key", key);
});
loop();
