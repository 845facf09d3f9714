// The state of the page is in its address, so that a view can be bookmarked and shared.
import { element, group, listed } from "./render.js"

const POLL_MS = 2000
const PAGE = 200
const DEFAULTS = { run: "0", table: "", other_run: "0", other_table: "", filter: "all", family: "", search: "", place: "" }
const at = id => document.getElementById(id)

let state = { ...DEFAULTS, ...Object.fromEntries(new URLSearchParams(location.hash.slice(1))) }
let runs = []
let filters = {}
let shown = []     // the listed groups
let total = 0
let prompts = false
const errors = {}  // by question
let asked = 0      // number of the newest question; answers to older ones are dropped

async function ask(name, query) {
  const used = Object.entries(query).filter(([, value]) => value !== "" && value != null)
  try {
    const answer = await fetch(`api/${name}?${new URLSearchParams(used)}`)
    const document = await answer.json()
    errors[name] = answer.ok ? "" : document.error
    if (answer.ok) return document
  } catch {
    errors[name] = "No answer: `rlsys view` has stopped, or the connection is lost."
  } finally {
    at("error").textContent = Object.values(errors).find(Boolean) ?? ""
    at("error").hidden = !at("error").textContent
  }
}

const tables = run => runs[Number(run)]?.tables ?? []
const newest = run => tables(run).at(-1)?.name ?? ""
const changed = (run, name) => tables(run).find(table => table.name === name)?.changed
const stamp = () => JSON.stringify([changed(state.run, state.table), state.other_table && changed(state.other_run, state.other_table)])
const tableQuery = () => ({ run: state.run, table: state.table, ...state.other_table ? { other_run: state.other_run, other_table: state.other_table } : {} })

function options(select, entries, value) {
  const same = entries.length === select.options.length && entries.every(([key, words], i) => select.options[i].value === key && select.options[i].text === words)
  if (!same) select.replaceChildren(...entries.map(([key, words]) => element("option", { value: key }, words)))
  select.value = value
}

function controls(answer) {
  const named = runs.map((run, number) => [String(number), `${run.name}${run.complete ? "" : " (unfinished)"}`])
  options(at("run"), named, state.run)
  options(at("table"), tables(state.run).map(table => [table.name, table.name]), state.table)
  options(at("other_run"), named, state.other_run)
  options(at("other_table"), [["", "nothing"], ...tables(state.other_run).map(table => [table.name, table.name])], state.other_table)
  if (!answer) return
  const family = entry => `${entry.name} (${entry.groups}: ${entry.rewards.map(reward => reward == null ? "?" : reward.toFixed(2)).join(" → ")})`
  options(at("family"), [["", "all"], ...answer.families.map(entry => [entry.name, family(entry)])], state.family)
  at("filters").replaceChildren(...Object.entries(filters).filter(([name]) => name !== "changed" || state.other_table).map(([name, words]) =>
    element("button", { "aria-pressed": String(name === state.filter), "data-filter": name, onclick: () => go({ filter: name }) }, `${words} ${answer.counts[name]}`)))
  at("status").textContent = answer.unmatched ? `${answer.unmatched} groups have no partner in ${state.other_table}` : ""
}

// --- showing --------------------------------------------------------------------------------------------------------

async function load(more = 0) {
  const question = ++asked
  if (!state.table) {
    at("detail").replaceChildren(element("p", { class: "facts" }, "This run has no judgements yet; they appear here when it writes them."))
    return controls()
  }
  const query = { ...tableQuery(), filter: state.filter, family: state.family, search: state.search }
  const answer = await ask("groups", { ...query, offset: more, limit: PAGE })
  if (question !== asked) return
  if (!answer) return controls()
  shown = more ? [...shown, ...answer.groups] : answer.groups
  total = answer.total
  if (!shown.some(one => String(one.place) === state.place)) state.place = shown.length ? String(shown[0].place) : ""
  controls(answer)
  list()
  await detail()
}

function list() {
  const entries = shown.map(one => listed(one, String(one.place) === state.place, () => go({ place: String(one.place) })))
  if (!entries.length) entries.push(element("p", { class: "facts" }, "No group passes this filter."))
  if (shown.length < total) entries.push(element("button", { class: "more", onclick: () => load(shown.length) }, `${shown.length} of ${total}: show more`))
  at("list").replaceChildren(...entries)
  at("list").querySelector("[aria-current=true]")?.scrollIntoView({ block: "nearest" })
}

async function detail() {
  history.replaceState(null, "", `#${new URLSearchParams(Object.entries(state).filter(([key, value]) => value !== DEFAULTS[key]))}`)
  const chosen = shown.find(one => String(one.place) === state.place)
  if (!chosen) return at("detail").replaceChildren()
  const question = asked
  const sides = [{ run: state.run, table: state.table, place: chosen.place }]
  if (chosen.other) sides.push({ run: state.other_run, table: state.other_table, place: chosen.other.place })
  const answers = await Promise.all(sides.map(side => ask("group", side)))
  if (question !== asked || answers.includes(undefined)) return
  const more = side => (number, column, start) => ask("text", { ...side, number, column, start })
  const name = side => runs.length > 1 ? `${runs[Number(side.run)].name} ${side.table}` : side.table
  const columns = answers.map((answer, i) => group(answer, sides.length > 1 ? name(sides[i]) : "", prompts, more(sides[i])))
  at("detail").replaceChildren(element("div", { class: "sides" }, ...columns))
  at("detail").scrollTop = 0
}

function go(changes) {
  const before = state
  state = { ...state, ...changes }
  if (state.run !== before.run && !("table" in changes)) state.table = newest(state.run)
  if (state.other_run !== before.other_run && !("other_table" in changes)) state.other_table = state.other_table && newest(state.other_run)
  if (!state.other_table && state.filter === "changed") state.filter = "all"
  if (Object.keys(changes).join() === "place") { asked++; list(); return detail() }
  return load()
}

async function poll() {
  const answer = document.hidden && runs.length ? null : await ask("runs", {})
  if (answer) {
    const before = stamp(), first = !runs.length
    ;({ runs, filters } = answer)
    if (!tables(state.run).some(table => table.name === state.table)) state.table = newest(state.run)
    if (at("follow").checked && newest(state.run) !== state.table) await go({ table: newest(state.run) })
    else if (first || stamp() !== before) await load()
    else controls()
  }
  setTimeout(poll, POLL_MS)
}

// --- keys -----------------------------------------------------------------------------------------------------------

function step(by) {
  const place = shown.findIndex(one => String(one.place) === state.place)
  const next = shown[Math.min(Math.max(place + by, 0), shown.length - 1)]
  if (next) go({ place: String(next.place) })
}

function turn(by) {
  const names = tables(state.run).map(table => table.name)
  const next = names[names.indexOf(state.table) + by]
  if (next) go({ table: next })
}

function cycle(by) {
  const names = Object.keys(filters).filter(name => name !== "changed" || state.other_table)
  go({ filter: names[(names.indexOf(state.filter) + by + names.length) % names.length] })
}

function swap() {
  if (state.other_table) go({ run: state.other_run, table: state.other_table, other_run: state.run, other_table: state.table })
}

function togglePrompts() {
  prompts = !prompts
  document.querySelectorAll("details.prompt").forEach(one => { one.open = prompts })
}

const KEYS = {
  j: () => step(1), k: () => step(-1), ArrowDown: () => step(1), ArrowUp: () => step(-1),
  g: () => step(-Infinity), G: () => step(Infinity),
  "[": () => turn(-1), "]": () => turn(1), f: () => cycle(1), F: () => cycle(-1),
  p: togglePrompts, x: swap, n: () => at("follow").click(), "/": () => at("search").focus(), "?": () => at("help").showModal(),
}

document.addEventListener("keydown", event => {
  const typing = event.target.matches("input[type=search], select")
  if (typing && event.key === "Escape") event.target.blur()
  if (typing || at("help").open || event.ctrlKey || event.altKey || event.metaKey || !KEYS[event.key]) return
  event.preventDefault()
  KEYS[event.key]()
})

for (const name of ["run", "table", "other_run", "other_table", "family"]) at(name).addEventListener("change", event => {
  event.target.blur()
  go({ [name]: event.target.value })
})
at("search").addEventListener("input", event => go({ search: event.target.value }))
at("follow").addEventListener("change", () => at("follow").checked && go({ table: newest(state.run) }))
at("previous").addEventListener("click", () => turn(-1))
at("next").addEventListener("click", () => turn(1))
at("help-button").addEventListener("click", () => at("help").showModal())
at("search").value = state.search
poll()
