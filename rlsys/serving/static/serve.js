// A question and its responses, sent to /v1/score/stream; texts, samples and the vote are shown as they arrive.
// All texts, the model's as well as the visitor's, become text nodes, never markup.
import { guidedVote, vote } from "./votes.js"

const EXAMPLE = ["Which one is a tool: whiskey, judo, beige, saw?", "whiskey", "saw"]
const at = id => document.getElementById(id)
let samples = []   // {card, text, result}, by number
let running = null // the AbortController of the judgement in progress

function element(tag, attributes, ...children) {
  const made = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value)
    else if (value != null) made.setAttribute(name, value)
  }
  made.append(...children.filter(child => child != null).map(child => child instanceof Node ? child : String(child)))
  return made
}

// --- the form -------------------------------------------------------------------------------------------------------

const boxes = () => [...document.querySelectorAll("#responses textarea")]

function addResponse(text = "") {
  const box = element("textarea", { rows: 4, dir: "auto" })
  box.value = text
  const label = element("label", {}, element("span", {}), box)
  const remove = element("button", { type: "button", onclick: () => { label.parentElement.remove(); renumber(); at("add").focus() } }, "remove")
  at("responses").append(element("div", { class: "response" }, label, remove))
  renumber()
  return box
}

function renumber() {
  const all = document.querySelectorAll(".response")
  all.forEach((response, i) => {
    response.querySelector("span").textContent = `Response ${i + 1}`
    response.querySelector("button").setAttribute("aria-label", `Remove response ${i + 1}`)
    response.querySelector("button").hidden = all.length < 2
  })
}

function request() {
  const asked = { conversation: at("question").value, responses: boxes().map(box => box.value), k: Number(at("k").value), seed: Number(at("seed").value), critiques: true }
  if (at("strategy").value) asked.strategy = at("strategy").value
  if (at("principles").value.trim()) asked.principles = at("principles").value
  return asked
}

// --- asking ---------------------------------------------------------------------------------------------------------

async function refusal(answer) {
  if (answer.status === 401) {
    at("token-field").hidden = false
    at("token").focus()
  }
  try {
    return (await answer.json()).error.message
  } catch {
    return `The service answered with status ${answer.status}.`
  }
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader()
  let rest = ""
  for (;;) {
    const { value, done } = await reader.read()
    if (done) return
    const whole = (rest + value).split("\n\n")
    rest = whole.pop()
    for (const one of whole) {
      const fields = Object.fromEntries(one.split("\n").map(line => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]))
      yield [fields.event, JSON.parse(fields.data)]
    }
  }
}

// Returns the service's vote; throws an Error whose message is for the reader.
async function judged(asked, signal) {
  const headers = { "Content-Type": "application/json", ...at("token").value ? { Authorization: `Bearer ${at("token").value}` } : {} }
  const answer = await fetch("v1/score/stream", { method: "POST", headers, body: JSON.stringify(asked), signal })
  if (!answer.ok) throw new Error(await refusal(answer))
  for await (const [name, data] of events(answer.body)) {
    if (name === "text") sample(data.sample).text.appendData(data.text)
    else if (name === "sample") finish(data.sample, data.result, asked)
    else if (name === "error") throw new Error(data.error.message)
    else if (name === "score") return data
  }
  throw new Error("The connection was lost before the end.")
}

async function judge() {
  if (running || !at("form").reportValidity()) return
  const asked = request()
  running = new AbortController()
  clear()
  busy(true)
  try {
    const score = await judged(asked, running.signal)
    showVotes(asked, score)
    at("status").textContent = verdict(score)
  } catch (error) {
    const stopped = error.name === "AbortError"
    at("status").textContent = stopped ? "Stopped." : ""
    if (!stopped) complain(error instanceof TypeError ? "No answer: the service has stopped, or the connection is lost." : error.message)
  } finally {
    running = null
    busy(false)
  }
}

function busy(now) {
  at("judge").disabled = now
  at("stop").hidden = !now
  if (now) at("status").textContent = "Judging …"
  else for (const { card } of samples) card.removeAttribute("aria-busy")
}

function clear() {
  samples = []
  at("error").hidden = true
  at("samples").replaceChildren()
  at("votes").replaceChildren()
}

function complain(message) {
  at("error").textContent = message
  at("error").hidden = false
}

// --- showing --------------------------------------------------------------------------------------------------------

function sample(number) {
  while (samples.length <= number) {
    const text = document.createTextNode("")
    const facts = element("p", { class: "facts" }, "…")
    const card = element("article", { "aria-busy": "true" }, element("h2", {}, `Sample ${samples.length + 1}`), facts, element("pre", { dir: "auto" }, text))
    at("samples").append(card)
    samples.push({ card, facts, text, result: null })
  }
  return samples[number]
}

function finish(number, result, asked) {
  const { card, facts, text } = sample(number)
  samples[number].result = result
  card.removeAttribute("aria-busy")
  facts.textContent = [
    result.scores ? null : `not parsed: ${result.parse_failure}`,
    `shown in the order ${result.order.map(index => index + 1).join(", ")}`,
    result.meta_reward == null ? null : `meta reward ${result.meta_reward.toFixed(2)}`,
    `${result.tokens} tokens${result.truncated ? ", cut off" : ""}`,
  ].filter(Boolean).join(" · ")
  if (result.text != null) text.data = result.text
  showVotes(asked, null)
  at("status").textContent = `${samples.filter(one => one.result).length} of ${asked.k} samples`
}

const points = value => Number.isInteger(value) ? value : value.toFixed(2)

function row(name, scores, best, range, ...more) {
  const cell = (score, i) => element("td", {}, element("span", { class: i === best ? "best" : null }, points(score)),
    range && element("meter", { min: range[0], max: range[1], value: score, "aria-hidden": "true" }))
  return element("tr", {}, element("th", { scope: "row" }, name), ...scores.map(cell), ...more)
}

const highest = scores => scores.filter(score => score === Math.max(...scores)).length > 1 ? null : scores.indexOf(Math.max(...scores))

// The samples' scores in the order of the form, and the votes over them; `score` is the service's answer once it is known.
function showVotes(asked, score) {
  const done = samples.map((one, i) => [i, one.result]).filter(([, result]) => result)
  const results = done.map(([, result]) => result)
  const guided = results.some(result => result.meta_reward != null)
  const meta = result => guided ? element("td", {}, result.meta_reward == null ? "" : result.meta_reward.toFixed(2)) : null
  const range = score?.score_range
  const body = done.map(([i, result]) => result.scores ? row(`Sample ${i + 1}`, result.scores, highest(result.scores), null, meta(result))
    : element("tr", {}, element("th", { scope: "row" }, `Sample ${i + 1}`), element("td", { class: "failed", colspan: asked.responses.length }, `not parsed: ${result.parse_failure}`), meta(result)))
  const votes = [["Vote", vote(results)], ["Guided vote", guided ? guidedVote(results) : null]].filter(([, scores]) => scores)
  const foot = votes.map(([name, scores]) => row(name, scores, highest(scores), range, guided ? element("td") : null))
  if (score?.scores && !["vote", "mean", "meta"].includes(score.strategy)) foot.push(row(`By ${score.strategy}`, score.scores, score.best, range, guided ? element("td") : null))
  const head = element("tr", {}, element("th", {}, "Scores"), ...asked.responses.map((_, i) => element("th", { scope: "col" }, `Response ${i + 1}`)),
    guided ? element("th", { scope: "col" }, "Meta reward") : null)
  at("votes").replaceChildren(element("table", {}, element("thead", {}, head), element("tbody", {}, ...body), element("tfoot", {}, ...foot)))
}

function verdict(score) {
  const by = `by ${score.strategy}, ${score.parsed} of ${score.samples.length} samples parsed`
  if (!score.scores) return `No verdict: no sample could be parsed (${score.samples.length} samples).`
  if (score.abstained) return `No verdict: the margin is too small (${by}).`
  if (score.scores.length === 1) return `Score ${points(score.scores[0])} in ${score.score_range?.join(" to ") ?? "its range"} (${by}).`
  if (score.tied) return `A tie at the top; response ${score.best + 1} by lot (${by}).`
  return `Response ${score.best + 1} is best, ${points(score.margin)} ahead (${by}).`
}

// --- events ---------------------------------------------------------------------------------------------------------

async function about() {
  try {
    const ready = await (await fetch("readyz")).json()
    at("model").textContent = ready.error ? ready.error.message : `${ready.model} · version ${ready.version}`
  } catch {
    at("model").textContent = "The service does not answer."
  }
}

at("form").addEventListener("submit", event => { event.preventDefault(); judge() })
at("add").addEventListener("click", () => addResponse().focus())
at("stop").addEventListener("click", () => running?.abort())
at("example").addEventListener("click", () => {
  at("responses").replaceChildren()
  at("question").value = EXAMPLE[0]
  EXAMPLE.slice(1).forEach(text => addResponse(text))
  at("judge").focus()
})
document.addEventListener("keydown", event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); judge() }
  if (event.key === "Escape") running?.abort()
})
addResponse()
addResponse()
about()
