"""The runs of a study that show averages, and the parent run that holds them together.

They are derived from the runs of jobs, as a report is: of the latest recipe, with all of its grid, even if this driver
computes only a part. MLflow cannot change a logged value, so a run whose numbers have changed is replaced by a new one.
A digest of all that a run shows tells whether it has changed, so that nothing is read back and a repeated update adds
nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from study.plan import Plan
from study.tracking.contents import USER
from study.tracking.experiment import Experiment
from study.tracking.labels import recipe_digest
from study.tracking.views import view_tags
from trainables import schema
from trainables.host.clock import now
from trainables.host.places import user
from trainables.host.redaction import redact
from trainables.host.version import project_commit
from trainables.knobs import SETTINGS
from trainables.schema import FINISHED

if TYPE_CHECKING:  # pandas and matplotlib are not for a plan
    from analysis.drawing.averages import Average, Chart

BATCH = 900
"""Metric values per request; MLflow takes 1,000 of all kinds."""
PARENT = "mlflow.parentRunId"


class CellRuns:
    """Keeps the parent run, the cell runs, the method runs and the saved views of a study up to date."""

    def __init__(self, plan: Plan, tracking_uri: str, command: str) -> None:
        """Prepare.

        Args:
            plan: the study's plan.
            tracking_uri: where the study records its runs.
            command: the command line, without passwords.
        """
        self._plan, self._uri, self._command = plan, tracking_uri, command

    def update(self, experiment: Experiment) -> None:
        """Bring the runs and views of an open experiment up to date.

        Raises:
            AnalysisError: the tracking store cannot be read.
        """
        import analysis.drawing.averages  # noqa: F401  # takes seconds, in which other drivers can still create runs

        with experiment.sole_creator():
            experiment.refresh()
            wanted, charts = self._averages()  # in here, so that no driver puts older averages in place of newer ones
            parent = self._parent(experiment)
            found = defaultdict(list)
            for run in experiment.runs(f"tags.{schema.TAG_AVERAGE} LIKE '%'"):
                found[run.data.tags[schema.TAG_AVERAGE]].append(run)
            for average in wanted:
                _show(experiment, parent, average, found.pop(average.key, []))
            for outdated in found.values():  # of another recipe, or of results that are gone
                _delete(experiment, outdated)
            experiment.set_tags(view_tags(charts, _settings(wanted), experiment.created, experiment.tags))

    def _averages(self) -> tuple[Sequence[Average], Sequence[Chart]]:
        from analysis.drawing.averages import averages
        from analysis.load import runs
        from analysis.sources import NoRuns

        try:
            return averages(runs(self._plan.space.name, self._uri))
        except NoRuns:
            return [], []

    def _parent(self, experiment: Experiment) -> str:
        """Return the ID of the study's parent run, brought up to date; an earlier report's run becomes one.

        The run describes the study of the experiment's recipe, so a driver that still computes an earlier recipe lets
        it be.
        """
        client, tags = experiment.client, self._parent_tags(experiment)
        found = list(experiment.runs(f"tags.{schema.TAG_STUDY} = 'true'"))
        if not found:
            run = client.create_run(experiment.id, tags=tags, run_name=schema.STUDY_RUN)
            client.set_terminated(run.info.run_id, FINISHED)
            return str(run.info.run_id)
        run = min(found, key=lambda each: each.info.start_time)
        if experiment.tags.get(schema.TAG_RECIPE, tags[schema.TAG_RECIPE]) != tags[schema.TAG_RECIPE]:
            return str(run.info.run_id)
        said = run.data.tags
        tags[schema.NOTE] += "".join(said.get(schema.NOTE, "").partition(schema.RULE)[1:])
        if new := {name: value for name, value in tags.items() if said.get(name) != value}:
            experiment.log(run.info.run_id, tags=new)
        return str(run.info.run_id)

    def _parent_tags(self, experiment: Experiment) -> dict[str, str]:
        plan, commit = self._plan, project_commit()
        kinds = Counter(job.kind for job in plan.jobs.values())
        jobs = f"{len(plan.jobs)} jobs ({', '.join(f'{count} {kind}' for kind, count in kinds.items())})"
        lines = [plan.space.question, f"{jobs}, {plan.epochs:,} epochs", f"Command: `{self._command}`"]
        lines += [f"Recipe: {_recipe(plan)}"]
        return {
            schema.TAG_STUDY: "true",
            schema.TAG_RECIPE: recipe_digest(plan.space, plan.ways),
            schema.TAG_STORE: redact(experiment.store.uri),
            schema.NOTE: "\n\n".join(lines),
            "mlflow.runName": schema.STUDY_RUN,
            schema.TAG_COMMAND: self._command,
            schema.TAG_SOURCE: "study.run",
            USER: user(),
            **({schema.TAG_COMMIT: commit} if commit else {}),
        }


def _settings(averages: Sequence[Average]) -> list[str]:
    """Return the settings that tell cell runs apart, other than the axes of every grid."""
    names = {name for average in averages for name in average.params}
    return [name for name in SETTINGS if name in names and not SETTINGS[name].axis]


def _recipe(plan: Plan) -> str:
    """Return the settings of a plan's space that its cells share, without those that are the default."""
    settings = {name: getattr(plan.space, name) for name, knob in SETTINGS.items()}
    return ", ".join(f"{name}={_text(value)}" for name, value in settings.items() if value != SETTINGS[name].default)


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _show(experiment: Experiment, parent: str, average: Average, runs: list[Any]) -> None:
    """Create a run that shows averages, unless one of those found does, and delete the others."""
    content = f"{average.content} {parent}"
    if shown := [run for run in runs if run.data.tags.get(schema.TAG_CONTENT) == content]:
        _delete(experiment, [run for run in runs if run is not shown[0]])
        return
    when = now()
    tags = {
        schema.TAG_AVERAGE: average.key,
        schema.TAG_LEVEL: average.level,
        schema.TAG_COLOUR: average.colour,
        schema.TAG_ORDER: average.order,
        PARENT: parent,
        schema.TAG_SOURCE: "study.run",
        USER: user(),
    }
    run_id = experiment.client.create_run(experiment.id, when, tags, average.name).info.run_id
    points = [(name, value, when, step) for (name, step), value in average.points.items()]
    *full, rest = [points[start : start + BATCH] for start in range(0, max(len(points), 1), BATCH)]
    for batch in full:
        experiment.log(run_id, batch)
    # The tag says that all is there. MLflow writes the tags of a request last.
    experiment.log(run_id, rest, average.params, {schema.TAG_CONTENT: content})
    experiment.client.set_terminated(run_id, FINISHED)
    _delete(experiment, runs)  # only now, so that a page never lacks the run


def _delete(experiment: Experiment, runs: Sequence[Any]) -> None:
    for run in runs:
        experiment.client.delete_run(run.info.run_id)
