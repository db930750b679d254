"""Runs put together: a section for each data set, in it a group for all that share a recipe but for the seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cnn_jobs.errors import UserError
from cnn_jobs.recipe import FIELD_NAMES
from cnn_jobs.report.document import clean
from cnn_jobs.tasks import TASKS
from cnn_jobs.tracking import names
from cnn_jobs.tracking.run_reader import Aside, TrainingRun, reason_against

SHORT_HASH = 8


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed alone, in its order. ``changed``: what of the recipe is not the task's own."""

    key: str
    task: str
    label: str
    changed: tuple[str, ...]
    runs: tuple[TrainingRun, ...]

    def values(self, metric: str) -> dict[int, float]:
        """Last value of a metric by seed, of the runs that have it."""
        return {run.seed: run.metrics[metric] for run in self.runs if metric in run.metrics}


@dataclass(frozen=True)
class Section:
    """All groups on one data set; runs on different ones never stand in a table together."""

    digest: str
    name: str
    synthetic: bool
    groups: tuple[Group, ...]

    @property
    def name_and_digest(self) -> str:
        """Tells it from another data set of the same name."""
        return f"{self.name} {self.digest[:SHORT_HASH]}"

    def find(self, name: str) -> Group | None:
        """The group of that label or hash (8 digits or more), else the task's: with its own recipe, or most seeds."""
        exact = [each for each in self.groups if each.label == name]
        hashed = [each for each in self.groups if len(name) >= SHORT_HASH and each.key.startswith(name)]
        of_task = [each for each in self.groups if each.task == name]
        of_task.sort(key=lambda each: (bool(each.changed), -len(each.runs), each.label))
        found = exact or hashed or of_task
        return found[0] if found else None


def put_together(runs: Sequence[TrainingRun]) -> tuple[list[Section], list[Aside]]:
    """Sections of the runs that can be counted, real images first, and the runs that cannot, with the reason.

    Of runs with one recipe and seed the oldest counts: a repetition is not another sample.
    """
    by_data: dict[str, dict[str, dict[int, TrainingRun]]] = defaultdict(lambda: defaultdict(dict))
    aside = []
    for run in sorted(runs, key=lambda run: (run.start_ms, run.run_id)):
        reason = reason_against(run, list(TASKS))
        if not reason:
            seeds = by_data[run.tags[names.DATA_DIGEST]][run.group_hash]
            first = seeds.setdefault(run.seed, run)
            if first is run:
                continue
            reason = f"it repeats run {first.run_id[:SHORT_HASH]}, with the same recipe and seed"
        aside.append(_aside(run, reason))
    sections = [_section(digest, groups) for digest, groups in by_data.items()]
    return sorted(sections, key=lambda each: (each.synthetic, each.name, each.digest)), aside


def _aside(run: TrainingRun, reason: str) -> Aside:
    state = run.tags.get(names.STATE, run.status.lower())
    return Aside(run.run_id, clean(run.name), run.url, clean(state), clean(reason, 200))


def _section(digest: str, found: dict[str, dict[int, TrainingRun]]) -> Section:
    groups = [_group(key, [seeds[seed] for seed in sorted(seeds)]) for key, seeds in found.items()]
    labels = [group.label for group in groups]
    groups = [
        # The same params and another hash: the task itself was another.
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
    # What weights a transfer begins with is in its title; the seed is what a group averages over.
    changed = tuple(
        f"{name}={clean(params[name], 30)}"
        for name in FIELD_NAMES
        if name not in ("seed", "weights") and name in params and params[name] != str(own[name])
    )
    return Group(key, task, f"{task} ({', '.join(changed)})" if changed else task, changed, tuple(runs))


def with_first_runs(section: Section, change: Callable[[TrainingRun], TrainingRun]) -> Section:
    """The section with the first run of each group changed: it is the one whose pictures are shown."""
    groups = (replace(group, runs=(change(group.runs[0]), *group.runs[1:])) for group in section.groups)
    return replace(section, groups=tuple(groups))


def pair_of(sections: Sequence[Section], first: str, second: str) -> list[tuple[Section, Group, Group]]:
    """The two groups in every section that has both.

    Raises ``UserError`` that lists the groups where no section has them.
    """
    pairs = [(section, section.find(first), section.find(second)) for section in sections]
    both = [(section, one, other) for section, one, other in pairs if one and other]
    same = next((one for _, one, other in both if one is other), None)
    if same:
        raise UserError(f"--compare names {same.label} twice: '{first}' and '{second}'; name two groups")
    if not both:
        there = "; ".join(f"{each.name}: {', '.join(group.label for group in each.groups)}" for each in sections)
        raise UserError(f"--compare {first} {second}: no data set has finished runs of both; there are {there}")
    return both
