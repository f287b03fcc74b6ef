// Prometheus' text format, and what is between two scrapes of it.

// Returns a map from names to lists of { labels, value }.
export function parseMetrics(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const match = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!match) continue;
    const [, name, inside, written] = match, labels = {};
    for (const [, label, text] of (inside ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g))
      labels[label] = text.replace(/\\(.)/g, (_, c) => (c === "n" ? "\n" : c));
    if (!found.has(name)) found.set(name, []);
    found.get(name).push({ labels, value: Number(written.replace("Inf", "Infinity")) });
  }
  return found;
}

function matching(samples, name, labels) {
  return (samples.get(name) ?? []).filter((sample) =>
    Object.entries(labels).every(([label, text]) => sample.labels[label] === text));
}

// The sum of all samples that have these labels; null if there are none.
export function value(samples, name, labels = {}) {
  const found = matching(samples, name, labels);
  return found.length ? found.reduce((sum, sample) => sum + sample.value, 0) : null;
}

// What counters have grown by between two scrapes. One that has shrunk has begun anew.
export function deltas(first, last) {
  const seconds = last.at - first.at;
  const grown = (name, labels) => {
    const after = value(last.samples, name, labels), before = value(first.samples, name, labels);
    if (after === null) return null;
    return before === null || after < before ? after : after - before;
  };
  const perSecond = (name, labels = {}) => {
    const amount = grown(name, labels);
    return amount === null || seconds <= 0 ? null : amount / seconds;
  };
  return { grown, perSecond, last: last.samples };
}

// A quantile of a histogram's new observations, interpolated in its bucket as Prometheus does;
// null if there are none.
export function quantile(between, name, q) {
  const bucket = `${name}_bucket`;
  const bounds = [...new Set((between.last.get(bucket) ?? []).map(({ labels }) => labels.le))];
  const counts = bounds
    .map((le) => [le === "+Inf" ? Infinity : Number(le), between.grown(bucket, { le })])
    .sort(([a], [b]) => a - b);
  const total = counts.at(-1)?.[1] ?? 0;
  if (!total) return null;
  const rank = q * total;
  let [below, before] = [0, 0];
  for (const [bound, count] of counts) {
    if (count >= rank) {
      if (bound === Infinity) return below;
      return below + (bound - below) * ((rank - before) / (count - before || 1));
    }
    [below, before] = [bound, count];
  }
  return below;
}
