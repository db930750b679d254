"""Groups of runs that differ only in the seed, one for each recipe, in a section for each data set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cnn_jobs.errors import UserError
from cnn_jobs.recipe import FIELD_NAMES
from cnn_jobs.report.document import clean
from cnn_jobs.report.statistics import Estimate, estimate
from cnn_jobs.tasks import TASKS
from cnn_jobs.tracking import names
from cnn_jobs.tracking.run_reader import Aside, TrainingRun, reason_against

SHORT_HASH = 8


@dataclass(frozen=True)
class Group:
    """Runs that differ only in the seed, by seed; ``changed``: recipe fields that are not the task's own."""

    key: str
    task: str
    label: str
    changed: tuple[str, ...]
    runs: tuple[TrainingRun, ...]

    @property
    def run_ids(self) -> tuple[str, ...]:
        """Ids of its runs, in order."""
        return tuple(run.run_id for run in self.runs)

    def values(self, metric: str) -> dict[int, float]:
        """Last value of a metric by seed, of the runs that have it."""
        return {run.seed: run.metrics[metric] for run in self.runs if metric in run.metrics}

    def estimate(self, metric: str) -> Estimate:
        """Mean and interval of a metric that at least one run has."""
        return estimate(self.values(metric).values())


@dataclass(frozen=True)
class Section:
    """All groups on one data set; runs on different data sets are never compared."""

    digest: str
    name: str
    synthetic: bool
    groups: tuple[Group, ...]

    @property
    def name_and_digest(self) -> str:
        """Distinguishes data sets of the same name."""
        return f"{self.name} {self.digest[:SHORT_HASH]}"

    @property
    def runs(self) -> list[TrainingRun]:
        """The runs of all groups."""
        return [run for group in self.groups for run in group.runs]

    def find(self, name: str) -> Group | None:
        """The group of that label, hash (at least 8 digits) or task.

        Of several groups of one task: the one with the task's own recipe, else the one with most seeds.
        """
        exact = [each for each in self.groups if each.label == name]
        hashed = [each for each in self.groups if len(name) >= SHORT_HASH and each.key.startswith(name)]
        of_task = [each for each in self.groups if each.task == name]
        of_task.sort(key=lambda each: (bool(each.changed), -len(each.runs), each.label))
        return next(iter(exact or hashed or of_task), None)

    def with_runs(self, by_id: Mapping[str, TrainingRun]) -> Section:
        """The section with each run replaced by the one of the same id."""
        groups = (replace(group, runs=tuple(by_id[each] for each in group.run_ids)) for group in self.groups)
        return replace(self, groups=tuple(groups))


def group_runs(runs: Sequence[TrainingRun]) -> tuple[list[Section], list[Aside]]:
    """Sections of the runs that count, real images first; and the runs that do not, with the reason.

    Of runs with the same recipe and seed only the oldest counts: a repetition is not another sample.
    """
    by_data: dict[str, dict[str, dict[int, TrainingRun]]] = defaultdict(lambda: defaultdict(dict))
    aside = []
    for run in sorted(runs, key=lambda run: (run.start_ms, run.run_id)):
        reason = reason_against(run, list(TASKS))
        if not reason:
            first = by_data[run.tags[names.DATA_DIGEST]][run.group_hash].setdefault(run.seed, run)
            if first is run:
                continue
            reason = f"it repeats run {first.run_id[:SHORT_HASH]}, with the same recipe and seed"
        state = run.tags.get(names.STATE, run.status.lower())
        aside.append(Aside(run.run_id, clean(run.name), run.url, clean(state), clean(reason, 200)))
    sections = [_section(digest, groups) for digest, groups in by_data.items()]
    return sorted(sections, key=lambda each: (each.synthetic, each.name, each.digest)), aside


def _section(digest: str, runs: Mapping[str, Mapping[int, TrainingRun]]) -> Section:
    """``runs``: by group hash and seed."""
    groups = [_group(key, [by_seed[seed] for seed in sorted(by_seed)]) for key, by_seed in runs.items()]
    labels = [group.label for group in groups]
    groups = [
        # Equal params with another hash: the task itself had another definition.
        group if labels.count(group.label) == 1 else replace(group, label=f"{group.label} [{group.key[:SHORT_HASH]}]")
        for group in groups
    ]
    order = list(TASKS)
    groups.sort(key=lambda group: (order.index(group.task), bool(group.changed), group.label))
    tags = groups[0].runs[0].tags
    synthetic = tags.get(names.SYNTHETIC_DATA) == "true"
    return Section(digest, clean(tags.get(names.DATA, "unnamed")), synthetic, tuple(groups))


def _group(key: str, runs: Sequence[TrainingRun]) -> Group:
    task, params = runs[0].task, runs[0].params
    own = TASKS[task].recipe.as_dict()
    # The weights are part of the task's title; the seed is what a group averages over.
    changed = tuple(
        f"{name}={clean(params[name], 30)}"
        for name in FIELD_NAMES
        if name not in ("seed", "weights") and name in params and params[name] != str(own[name])
    )
    return Group(key, task, f"{task} ({', '.join(changed)})" if changed else task, changed, tuple(runs))


def find_pairs(sections: Sequence[Section], first: str, second: str) -> list[tuple[Section, Group, Group]]:
    """The two groups in every section that has both.

    Raises ``UserError`` if no section has both, or if the names are of one group.
    """
    pairs = [(section, section.find(first), section.find(second)) for section in sections]
    both = [(section, one, other) for section, one, other in pairs if one and other]
    same = next((one for _, one, other in both if one is other), None)
    if same:
        raise UserError(f"--compare names {same.label} twice: '{first}' and '{second}'; name two groups")
    if not both:
        groups = "; ".join(f"{each.name}: {', '.join(group.label for group in each.groups)}" for each in sections)
        raise UserError(f"--compare {first} {second}: no data set has finished runs of both; there are {groups}")
    return both
