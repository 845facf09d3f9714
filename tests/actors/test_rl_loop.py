"""The RL loop on stand-ins for its actors, without Ray: when weights are sent, and under which version."""

from actors.loops.progress import ProgressReporter
from actors.loops.rl import Job
from actors.loops.rl_data import open_data
from rlsys.config.files import load_config
from rlsys.io.metrics import MetricsLog
from rlsys.io.run_folder import RunFolder
from rlsys.system.terminal import silent


class StandIns:
    """Engines, learners and reward actor in one; `trained` is the number of groups that each step can train on."""

    def __init__(self, trained):
        self.trained, self.calls, self.version = iter(trained), [], 0
        self.rollouts = self.learners = self.reward = self

    def ignore(self, *_):
        return None

    def sample(self, *_, watch):
        assert watch is None
        return []

    def judge(self, key, step, groups, samples, **_):
        trained, sources = next(self.trained), [(name, -1.0) for name in groups["source"].to_pylist()]
        counts = {"samples": 4, "groups": 2, "groups_unequal": trained, "groups_trained": trained, "groups_all_right": 0, "tokens": 40}
        return counts | {
            "reward_sum": -4.0,
            "rewarded": 4,
            "means": {},
            "truncated": 0,
            "parse_failures": {},
            "sources": sources,
            "oldest_version": self.version,
        }

    def train_grpo(self, *_):
        self.calls.append("train")
        return {"metrics": {"skipped": 0}, "samples": None}

    def send_weights(self, version):
        self.version = version
        self.calls.append(f"send {version}")
        return {"bytes": 0}

    def sleep(self):
        self.calls.append("sleep")

    begin = pop_learner_batch = begin_writing = finish = snapshot_reference = start_stage = decay_over = save = ignore


def test_a_step_that_trains_nothing_sends_no_weights(tiny_model, tmp_path):
    settings = ["rl.steps=4", "rl.prompts_per_step=2", "rl.group_size=2", "rl.refill=false", "data.responses=[2]", "data.heldout_rows=1"]
    config = load_config(None, [f"model.path={tiny_model}", f"run.dir={tmp_path / 'run'}", "checkpoint.every=1", *settings])
    actors = StandIns([0, 2, 0, 1])
    with RunFolder(config) as folder, ProgressReporter(silent(), "test") as progress:
        job = Job(config, folder, progress, open_data(config, folder, progress), actors)
        job.reinforce()
        assert actors.calls == ["sleep", "train", "send 1", "sleep", "train", "send 2"]
        metrics = MetricsLog.read(folder.path)
        assert [row["weight_version"] for row in metrics] == [0, 1, 1, 2]
        assert all("seconds/send_weights" in row for row in metrics)
        path, state = folder.latest_state(print)
        assert (state["step"], state["version"]) == (4, 2)
