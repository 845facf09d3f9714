// Documents of the viewer -> elements. Texts of runs are untrusted: they become text nodes, never markup.

export function element(tag, attributes, ...children) {
  const made = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value)
    else if (value === true) made.setAttribute(name, "")
    else if (value !== false && value != null) made.setAttribute(name, value)
  }
  made.append(...children.filter(child => child != null && child !== "").map(child => child instanceof Node ? child : String(child)))
  return made
}

export const signed = (value, digits = 2) => value == null ? "" : (value > 0 ? "+" : value < 0 ? "−" : "") + Math.abs(value).toFixed(digits)

const OUTCOMES = { r: ["right", "●", "right"], w: ["wrong", "●", "wrong"], n: ["none", "●", "no ground truth"], f: ["none", "○", "not parsed"] }

function dots(outcomes) {
  const counts = Object.entries(OUTCOMES).map(([letter, [, , words]]) => [outcomes.split(letter).length - 1, words]).filter(([count]) => count)
  const words = counts.map(([count, what]) => `${count} ${what}`).join(", ")
  const shown = [...outcomes.slice(0, 16)].map(letter => element("span", { class: OUTCOMES[letter][0] }, OUTCOMES[letter][1]))
  return element("span", { class: "dots", title: words, "aria-label": words, role: "img" }, ...shown, outcomes.length > 16 ? "…" : "")
}

export function listed(group, chosen, choose) {
  const about = [group.family, group.cut_off ? `${group.cut_off} cut off` : null, group.lead == null ? null : `lead ${signed(group.lead, 1)}`]
  const marks = element("span", {}, dots(group.outcomes), group.other ? " → " : "", group.other ? dots(group.other.outcomes) : "")
  const reward = group.other ? `Δ ${signed(group.change[0])}` : signed(group.reward)
  return element("button", { "aria-current": String(chosen), "data-place": group.place, onclick: choose },
    element("span", { class: "id" }, group.id), marks,
    element("small", {}, about.filter(Boolean).join(" · ")), element("small", { class: "number", title: "mean reward" }, reward))
}

function verdict(sample) {
  if (sample.scores == null) return element("b", { class: "none" }, `not parsed${sample.failure ? `: ${sample.failure}` : ""}`)
  if (sample.correct == null) return element("b", { class: "none" }, "no ground truth")
  return element("b", { class: sample.correct ? "right" : "wrong" }, sample.correct ? "correct" : "wrong")
}

function facts(sample) {
  const logprobs = [["rollout", sample.rollout_logprob], ["trainer", sample.trainer_logprob], ["reference", sample.reference_logprob]]
    .filter(([, value]) => value != null).map(([name, value]) => `${name} ${signed(value, 3)}`).join(", ")
  return [
    sample.reward == null ? null : `reward ${signed(sample.reward, 0)}`,
    sample.advantage == null ? null : `advantage ${signed(sample.advantage)}`,
    sample.meta_reward == null ? null : `meta reward ${signed(sample.meta_reward)}`,
    sample.token_count == null ? null : `${sample.token_count} tokens${sample.cut_off ? ", cut off" : ""}`,
    sample.weight_version == null ? null : `weights ${sample.weight_version}`,
    sample.hinted ? "hinted" : null,
    sample.kept == null ? null : sample.kept ? "kept" : `rejected: ${sample.why}`,
    logprobs ? `log-probability ${logprobs}` : null,
  ].filter(Boolean).join(" · ")
}

function scores(sample, best) {
  if (!sample.shown) return null
  const one = (score, place) => element("span", { class: sample.order[place] === best ? "best" : null },
    element("span", { class: "none" }, `[${place + 1}] `), element("b", {}, score))
  return element("p", { class: "scores", title: "scores in the order shown; the best response is underlined" }, ...sample.shown.map(one))
}

// A long text arrives in pieces; `more` fetches the next one.
function text(found, more) {
  const pieces = found.parts.flatMap(part => [part.label ? element("p", { class: "label" }, part.label) : null, element("pre", { dir: "auto" }, part.text)])
  const box = element("div", {}, ...(pieces.length ? pieces : [element("pre", {})]))
  let sent = found.sent
  if (sent >= found.length) return box
  const words = () => `show more (${(found.length - sent).toLocaleString("en")} of ${found.length.toLocaleString("en")} characters left)`
  const button = element("button", { class: "more", async onclick() {
    const next = await more(found.number, found.column, sent)
    if (!next) return
    sent += [...next.text].length
    box.lastElementChild.previousElementSibling.append(next.text)
    button.textContent = words()
    button.hidden = sent >= found.length || !next.text
  } }, words())
  box.append(button)
  return box
}

const order = places => places ? `shown in the order ${places.map(place => place + 1).join(", ")}` : null

function about(found) {
  const means = found.means.length > 1
    ? `mean scores ${found.means.map((mean, place) => `[${place + 1}] ${mean.toFixed(1)}`).join(", ")} (${found.parsed} parsed)` : null
  const versions = found.versions && [...new Set(found.versions)].join(" to ")
  return [
    found.source, found.family, `group ${found.group}`, found.truth && `ground truth: ${found.truth}`, means,
    order(found.order) ?? (found.truth || means ? "numbers in the file's order" : null), versions && `weights ${versions}`,
    found.reward == null ? null : `mean reward ${signed(found.reward)}`, found.lead == null ? null : `lead ${signed(found.lead, 1)}`,
  ].filter(Boolean).join(" · ")
}

export function group(found, title, prompts, more) {
  const cards = found.samples.map(sample => element("article", {},
    element("h3", {}, `Sample ${sample.sample}: `, verdict(sample), ` · ${facts(sample)}`),
    scores(sample, found.best),
    found.order || !sample.order ? null
      : element("p", { class: "facts" }, order(sample.order), found.prompts.length > 1 ? `, prompt ${sample.prompt + 1}` : ""),
    text(sample.text, more)))
  return element("div", { class: "side" },
    title ? element("p", { class: "label" }, title) : null,
    element("h2", { dir: "auto" }, found.id),
    element("p", { class: "facts" }, about(found)),
    ...found.prompts.map((prompt, number) => element("details", { class: "prompt", open: prompts },
      element("summary", {}, found.prompts.length > 1 ? `Prompt ${number + 1}` : "Prompt"), text(prompt, more))),
    element("div", { class: "samples" }, ...cards))
}
