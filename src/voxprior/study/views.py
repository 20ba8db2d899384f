"""The views of a study that the tracking store's page offers: scores, inits compared, Dice by labels, pretrainings.

A view is what the page itself writes when a user saves one: a tag of the experiment, JSON in JSON (MLflow 3.17). That
format is no promise of MLflow's. A version that does not know it shows its own default view, and nothing else is lost.
"""

import json
from typing import Any, NamedTuple

from voxprior.study.cells import arms_of, cells_of, pretrain_seeds

TAG = "mlflow.sharedViewState."
PAGE = 100  # runs that the page loads at once: the first in its order
LONGEST = 5000  # characters that the store takes for a tag
_CREATED = "attributes.start_time"


class View(NamedTuple):
    """A saved view: key in an address, name in the menu, text of a link to it (or none), table or charts."""

    key: str
    name: str
    link: str
    mode: str
    state: dict[str, Any]

    def tag(self) -> tuple[str, str]:
        """Writes the tag of the experiment that holds it."""
        content = {"name": self.name, "createdAt": 1, "updatedAt": 1, "state": json.dumps(self.state)}
        return TAG + self.key, json.dumps(content)

    def address(self, experiment: str) -> str:
        """Names its address on the page, from the hash on."""
        rest = f"viewStateShareKey={self.key}&compareRunsMode={self.mode}&workflowType=machine_learning"
        return f"#/experiments/{experiment}/runs?{rest}"


def views(study: dict[str, Any]) -> list[View]:
    """Makes the views of a study, the one to begin with first; those too long for a tag are left out."""
    budgets = (study.get("split") or {}).get("budgets") or [1]
    scores = ["test/dice", "test/nsd", "test/hd95_mm"]
    before = ["pretrain_seed"] if len(pretrain_seeds(study)) > 1 else []
    tuned = 'tags.stage = "finetune" and tags.replaced = "no"'
    table = _state(tuned, "metrics.`test/dice`") | {
        "selectedColumns": [
            *(f"metrics.`{name}`" for name in scores),
            *(f"tags.`{name}`" for name in ("init", "backbone", "budget", *before, "seed")),
            "attributes.`Duration`",
        ]
    }
    by_arm = {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "arm"}]}
    arms = arms_of(study) if study.get("inits") else []
    made = [View("scores", "Scores, best first", "scores", "TABLE", table)]
    for budget in sorted(budgets, reverse=True):
        named = f"{budget} label{'s' if budget != 1 else ''}"
        state = _state(f'{tuned} and params.budget = "{budget}"', "metrics.`test/dice`")
        state |= _charts("test", [_bar(name) for name in scores]) | {"groupBy": by_arm}
        if sum(len(cells_of(study, *arm, budget)) for arm in arms) > PAGE:  # means of the best would mislead
            state = _state('tags.stage = "arm" and tags.replaced = "no"', _CREATED)
            own = at_labels(budget)
            state |= _charts(own, [_bar(f"{own}/{name.removeprefix('test/')}") for name in scores])
        link = f"inits at {named}" if budget == max(budgets) else ""
        made.append(View(f"inits{budget}", f"Inits compared at {named}", link, "CHART", state))
    for backbone in study.get("inits") or {}:
        state = _state(f'tags.stage = "arm" and tags.replaced = "no" and tags.backbone = "{backbone}"', _CREATED)
        state |= _charts("by labels", [_line(f"by labels/{name.removeprefix('test/')}") for name in scores])
        name = f"Scores by labels, {backbone}"
        made.append(View(f"labels-{backbone}", name, f"{backbone} by labels", "CHART", state))
    state = _state('tags.stage = "pretrain" and tags.replaced = "no"', _CREATED)
    state |= _charts("train", [_line("train/loss")])
    made.append(View("pretraining", "Pretrainings", "pretrainings", "CHART", state))
    return [view for view in made if len(view.tag()[1]) <= LONGEST]


def at_labels(budget: int) -> str:
    """Names the metrics of an arm at one label budget."""
    return f"at {budget} label{'s' if budget != 1 else ''}"


def _state(search: str, order: str) -> dict[str, Any]:
    """Says which runs are shown, in which order, all of them visible in charts."""
    return {
        "searchFilter": search,
        "orderByKey": order,
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [],
        "runsHiddenMode": "SHOW_ALL",
        "groupBy": None,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def _charts(section: str, charts: list[dict[str, Any]]) -> dict[str, Any]:
    """Puts charts into a section of their own, above those that the page makes by itself."""
    own = {"uuid": section, "name": section, "display": True, "isReordered": True}
    return {
        "compareRunSections": [own],
        "compareRunCharts": [{**chart, "metricSectionId": section} for chart in charts],
        "isAccordionReordered": True,
    }


def _bar(metric: str) -> dict[str, Any]:
    return {"type": "BAR", "uuid": metric, "metricKey": metric, "deleted": False, "isGenerated": True}


def _line(metric: str) -> dict[str, Any]:
    return {
        "type": "LINE",
        "uuid": metric,
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "deleted": False,
        "isGenerated": True,
        "scaleType": "linear",
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "lineSmoothness": 0,
    }
