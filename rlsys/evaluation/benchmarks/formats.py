"""Adapters from a row of a benchmark's file to a cluster: what is judged, in which order it is shown, and its subset.

Rows are parsed by the readers of the same names (`rlsys.data.readers.formats`); adapters add what scoring needs beyond a record.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlsys.data.readers import READERS, DataError, Report, check
from rlsys.data.readers.fields import Row, integer, items, optional_text, row_id, text, wrong
from rlsys.data.readers.files import MESSAGES
from rlsys.data.readers.formats import FIRST, SECOND, TIE
from rlsys.data.readers.messages import conversation
from rlsys.data.records import NoUniqueBest, Record
from rlsys.evaluation.benchmarks.outcomes import TIES

BOTH = (0, 1), (1, 0)
"""The two orders of a pair."""


@dataclass(frozen=True)
class Draft:
    """A cluster as read from a row, before it is added to a benchmark."""

    id: str
    subset: str
    section: str
    inputs: tuple[tuple[Record, tuple[int, ...] | None], ...]
    """(record, order in which to show it) of each item."""
    rows: int = 1
    """Number of file rows it was read from."""
    pairs: tuple[tuple[int, int], ...] | None = None
    """See `Item.pairs`."""
    own_id: bool = True
    """Whether the id is given in the row, rather than derived from the row number."""

    @property
    def contents(self) -> tuple[object, ...]:
        """A key for detecting duplicates: the id, if the row has one, and everything that is judged."""
        texts = (repr((record.context, record.responses, record.rewards, order)) for record, order in self.inputs)
        return self.subset, self.id if self.own_id else None, hash("\n".join(texts))


@dataclass(frozen=True)
class FileLocation:
    """Location of a row's file: some benchmarks encode their subsets only in folder and file names."""

    file: Path
    root: Path
    """The path passed to `load`: a folder containing `file`, or `file` itself."""

    @property
    def below(self) -> Path:
        """The file's path relative to the root, without suffixes; only its name if it is the root."""
        path = self.file.relative_to(self.root) if self.file != self.root else Path(self.file.name)
        return path.with_name(path.name.partition(".")[0])

    def named(self, names: Mapping[str, str]) -> str | None:
        """Return the subset whose lower-case key is a word of the file's name or else of the nearest folder below the root.

        Folders above the root are ignored: /home/mathias/PPE does not mean mathematics.
        """
        for part in reversed(self.below.parts):
            for word in re.split(r"[^a-z0-9]+", part.lower()):
                if word in names:
                    return names[word]
        return None

    @property
    def folder(self) -> str:
        """The name of the folder passed to `load`, or of the folder containing the file passed to it."""
        root = self.root.resolve()
        return (root.parent if self.file == self.root else root).name


Adapter = Callable[[Row, FileLocation], Draft]

_SPOKEN = re.compile(r"prompt|question|instruction|input|content|answer|llm_response|chosen|rejected|(response|output)_?(\d{1,2}|[AB])")
"""Keys that hold text in the published files of any benchmark."""


def written(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row with booleans and numbers in text fields converted to strings: tabular formats infer types for `True` or `42`."""
    return {key: _written(value) if isinstance(key, str) and _SPOKEN.fullmatch(key) else _nested(value) for key, value in row.items()}


def _written(value: Any) -> Any:
    if isinstance(value, bool | int | float):
        return str(value)
    return [_written(one) for one in value] if isinstance(value, list) else _nested(value)


def _nested(value: Any) -> Any:
    if isinstance(value, dict):
        return written(value)
    return [_nested(one) if isinstance(one, dict) else one for one in value] if isinstance(value, list) else value


def one(record: Record, subset: str, section: str | None = None, orders: tuple[tuple[int, ...] | None, ...] = (None,)) -> Draft:
    return Draft(record.id, subset, section or subset, tuple((record, order) for order in orders))


REWARDBENCH_SECTIONS = {
    "Chat": ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"),
    "Chat Hard": (
        "mt-bench-hard", "llmbar-natural", "llmbar-adver-neighbor", "llmbar-adver-GPTInst", "llmbar-adver-GPTOut", "llmbar-adver-manual",
    ),
    "Safety": ("refusals-dangerous", "refusals-offensive", "xstest-should-refuse", "xstest-should-respond", "donotanswer"),
    "Reasoning": ("math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"),
}  # fmt: skip
"""Reward Bench: subsets of each section (rewardbench/constants.py, SUBSET_MAPPING)."""
REWARDBENCH_WEIGHTS = {
    "alpacaeval-easy": 100, "alpacaeval-length": 95, "alpacaeval-hard": 95, "mt-bench-easy": 28, "mt-bench-med": 40,
    "mt-bench-hard": 37, "llmbar-natural": 100, "llmbar-adver-neighbor": 134, "llmbar-adver-GPTInst": 92, "llmbar-adver-GPTOut": 47,
    "llmbar-adver-manual": 46, "refusals-dangerous": 100, "refusals-offensive": 100, "xstest-should-refuse": 154,
    "xstest-should-respond": 250, "donotanswer": 136, "math-prm": 984, "hep-cpp": 164, "hep-go": 164, "hep-java": 164, "hep-js": 164,
    "hep-python": 164, "hep-rust": 164,
}  # fmt: skip
"""Reward Bench: weight of each subset in its section (rewardbench/constants.py, EXAMPLE_COUNTS).

These are the numbers of prompts, except for math-prm (447), which weighs as much as the six code subsets together. Until September 2024
the published table had the two xstest subsets swapped.
"""


def rewardbench(row: Row, location: FileLocation) -> Draft:
    """Adapt Reward Bench without the prior sets: 23 subsets in four sections."""
    [record] = READERS["rewardbench"](row)
    for section, subsets in REWARDBENCH_SECTIONS.items():
        if record.source in subsets:
            return one(record, record.source, section)
    raise wrong("subset", f"one of {', '.join(REWARDBENCH_WEIGHTS)}", record.source)


REWARDBENCH2_SUBSETS = "Factuality", "Precise IF", "Math", "Safety", "Focus", TIES


def rewardbench2(row: Row, location: FileLocation, alone: bool = False) -> Draft:
    """Adapt Reward Bench 2: best of four; in Ties, all responses in one item or, with `alone`, one item per response.

    A Ties row becomes half a cluster: `pair_ties` joins the two rows of a prompt.
    """
    records = READERS["rewardbench2"](row)
    chosen, rejected = [record.responses[0] for record in records], records[0].responses[1:]
    for key, count in (("num_incorrect", len(rejected)), ("total_completions", len(chosen) + len(rejected))):
        if row.get(key) is not None and integer(row, key, 0, 1_000_000) != count:
            raise wrong(key, f"the number in chosen and rejected ({count})", row[key])
    subset, name = records[0].source, row_id(row, "id")
    if subset not in REWARDBENCH2_SUBSETS:
        raise wrong("subset", f"one of {', '.join(REWARDBENCH2_SUBSETS)}", subset)
    if subset != TIES:
        if len(records) > 1:
            raise wrong("chosen", f"one response outside of {TIES}", row["chosen"])
        return one(records[0], subset)
    if not re.fullmatch(r"(ref|tied):\d+", name):
        raise wrong("id", f'"ref:" or "tied:" and the number of the prompt, as {TIES} needs', name)
    whole = Record(name, subset, records[0].context, (*chosen, *rejected), (1.0,) * len(chosen) + (0.0,) * len(rejected), family=subset)
    return Draft(name, subset, subset, tuple((record, None) for record in (singles(whole) if alone else [whole])))


def singles(record: Record) -> list[Record]:
    """Split a record into one record per response."""
    pairs = zip(record.responses, record.rewards, strict=True)
    return [replace(record, id=f"{record.id}/{i}", responses=(response,), rewards=(reward,)) for i, (response, reward) in enumerate(pairs)]


def pair_ties(drafts: list[Draft], report: Report) -> list[Draft]:
    """Join the two rows of each Ties prompt into one draft, in the position of the first; an unpaired row is malformed."""
    rows: dict[str, list[Draft]] = {}
    for draft in drafts:
        if draft.subset == TIES:
            rows.setdefault(draft.id.partition(":")[2], []).append(draft)
    done: list[Draft] = []
    for draft in drafts:
        if draft.subset != TIES:
            done.append(draft)
            continue
        number = draft.id.partition(":")[2]
        kinds = sorted(row.id for row in rows[number])
        if kinds != [f"ref:{number}", f"tied:{number}"]:
            expected = f"one row ref:{number} and one row tied:{number}, as {TIES} scores them together"
            report.malformed_count += 1
            if len(report.malformed) < MESSAGES:
                report.malformed.append((0, f"{report.file}: id: expected {expected}; found {', '.join(kinds)}."))
        elif draft is rows[number][0]:
            done.append(replace(draft, id=number, inputs=tuple(found for row in rows[number] for found in row.inputs), rows=2))
    return done


RMB_GOALS = "Helpfulness", "Harmlessness"


def rmb(row: Row, location: FileLocation, pairs: bool = False) -> Draft:
    """Adapt RMB: pairwise rows (chosen, reject) and best-of-N rows (bon_best, loser_list), distinguished by their keys.

    A best-of-N row is judged as one input with all responses or, with `pairs`, as the best against each of the others.
    """
    task, reader = ("BoN", "rmb_bon") if row.get("bon_best") is not None else ("Pairwise", "rmb_pair")
    [record] = READERS[reader](row)
    category = text(row, "category_path")
    goal = next((goal for goal in RMB_GOALS if goal in category.split("/")), None)
    if goal is None:
        raise wrong("category_path", f"a path with {' or '.join(RMB_GOALS)} in it", category)
    if not pairs or task == "Pairwise":
        return one(record, category, f"{goal} {task}")
    best, *losers = record.responses
    duels = [replace(record, id=f"{record.id}/{i}", responses=(best, loser), rewards=FIRST) for i, loser in enumerate(losers)]
    return Draft(record.id, category, f"{goal} {task}", tuple((duel, None) for duel in duels))


def ppe_preference(row: Row, location: FileLocation) -> Draft:
    """Adapt PPE human preference; ties have no better response and are skipped."""
    [record] = READERS["ppe_preference"](row)
    if record.rewards == TIE:
        raise NoUniqueBest(f"{record.id}: the annotators chose a tie.")
    return one(record, "all")


PPE_DOMAINS = {
    "mmlu": "MMLU-Pro", "mmlupro": "MMLU-Pro", "gpqa": "GPQA", "mbpp": "MBPP-Plus", "mbppplus": "MBPP-Plus", "ifeval": "IFEval",
    "math": "MATH",
}  # fmt: skip
"""PPE correctness: its five domains by their names in file and folder names."""


def ppe_correctness(row: Row, location: FileLocation) -> Draft:
    """Adapt PPE correctness: the sampled conflict pairs of a prompt, each with one correct and one incorrect response."""
    if row.get("sampled_conflict_pairs") == []:
        raise NoUniqueBest(f"{row.name}: all responses are correct, or all incorrect.")
    duels = READERS["ppe_best_of_k"](row)
    for position, duel in enumerate(duels):
        if duel.rewards[0] == duel.rewards[1]:
            raise wrong(f"sampled_conflict_pairs[{position}]", "a right and a wrong response", row["sampled_conflict_pairs"][position])
    return replace(_ppe_draft(row, location), inputs=tuple((duel, None) for duel in duels))


def ppe_best_of_k(row: Row, location: FileLocation, k: int) -> Draft:
    """Adapt PPE best-of-K: the first k responses of a prompt in one input; any number of them may be correct."""
    scores = items(row, "scores")
    if len(scores) < k:
        raise wrong("scores", f"at least {k} of them", scores)
    for position, value in enumerate(scores[:k]):
        if not isinstance(value, bool):
            raise wrong(f"scores[{position}]", "a boolean", value)
    draft = _ppe_draft(row, location)
    responses = tuple(text(row, f"response_{position + 1}", blank=True) for position in range(k))
    record = Record(draft.id, "ppe_best_of_k", conversation(row, "prompt"), responses, tuple(map(float, scores[:k])), family=draft.subset)
    return replace(draft, inputs=((record, None),))


def _ppe_draft(row: Row, location: FileLocation) -> Draft:
    domain = location.named(PPE_DOMAINS) or "all"
    # A question occurs once per model that answered it.
    name = "/".join(part for part in (row_id(row, "id", "question_id"), optional_text(row, "model_name")) if part)
    return Draft(name, domain, domain, ())


JUDGEBENCH_SECTIONS = {"mmlu-pro": "Knowledge", "livebench-reasoning": "Reasoning", "livebench-math": "Math", "livecodebench": "Coding"}
"""JudgeBench: prefix of a question's source -> category it is reported in."""


def judgebench(row: Row, location: FileLocation) -> Draft:
    """Adapt JudgeBench: each pair in both orders."""
    [record] = READERS["judgebench"](row)
    source = record.family or "all"
    section = next((section for start, section in JUDGEBENCH_SECTIONS.items() if source.startswith(start)), source)
    return one(record, source, section, BOTH)


def realmistake(row: Row, location: FileLocation) -> Draft:
    """Adapt ReaLMistake: one response, with an error (0) or without (1). Folder and file are named after task and model."""
    [record] = READERS["realmistake"](row)
    return one(record, str(location.below))


LLMBAR_SUBSETS = {"natural": "Natural", "neighbor": "Neighbor", "gptinst": "GPTInst", "gptout": "GPTOut", "manual": "Manual"}
"""LLMBar: its five subsets by their names in file and folder names; all but the first are adversarial."""


def llmbar(row: Row, location: FileLocation) -> Draft:
    """Adapt LLMBar: each pair in both orders."""
    [record] = READERS["llmbar"](row)
    subset = location.named(LLMBAR_SUBSETS) or LLMBAR_SUBSETS.get(location.folder.lower())
    if subset is None:
        raise DataError(
            f"the file's path: expected the name of a subset in it ({', '.join(LLMBAR_SUBSETS.values())}), found {location.file}."
        )
    return one(record, subset, "Natural" if subset == "Natural" else "Adversarial", BOTH)


def pandalm(row: Row, location: FileLocation) -> Draft:
    """Adapt PandaLM: the majority of three annotators, where a tie is a vote; if all differ, the first one's, as published."""
    [record] = READERS["pandalm"](row)
    # Among equally frequent votes, most_common returns the first one seen, like the published max() over counts.
    vote = Counter(integer(row, f"annotator{k}", 0, 2) for k in (1, 2, 3)).most_common(1)[0][0]
    return one(replace(record, rewards=(TIE, FIRST, SECOND)[vote]), "all")


def any_format(row: Row, location: FileLocation, format: str) -> Draft:
    """Adapt a row of any reader format; a row of several records is one cluster. Records without a unique best response are skipped."""
    good = []
    for record in READERS[format](row):
        try:
            check(record)
            good.append(record)
        except NoUniqueBest:
            pass
    if not good:
        raise NoUniqueBest(f"{row.name}: no record with a unique best response.")
    subset = good[0].family or "all"
    return Draft(row_id(row, "id") if len(good) > 1 else good[0].id, subset, subset, tuple((record, None) for record in good))
