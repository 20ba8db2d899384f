"""fingerprint: shows what a dataset's scans are like, and what that proposes for a study."""

import json
from pathlib import Path
from typing import Any


def run(of: Path) -> None:
    """Prints the fingerprint that intake has written, and the proposal as lines to copy into a study.

    Raises:
        Refusal: the file is no fingerprint.
    """
    from voxprior.errors import Refusal

    try:
        content = json.loads(of.read_text(encoding="utf-8"))
        text = "\n".join([*describe(content), "", *proposal(content["proposal"])])
    except (ValueError, KeyError, TypeError):
        raise Refusal(f"{of} is no fingerprint of a dataset: run 'intake' again") from None
    print(text)


def describe(content: dict[str, Any]) -> list[str]:
    """Writes the fingerprint as a table of lines."""
    counts = f"{content['cases']} cases, {content['labelled']} labelled"
    lines = [f"{content['dataset']}: {counts}, {content['modality']}", ""]
    lines.append(f"{'Z Y X, LPS':14}{'min':>20}{'median':>20}{'max':>20}")
    for name in ("size_zyx_vox", "spacing_zyx_mm", "extent_zyx_mm"):
        shown = "".join(f"{' '.join(f'{v:g}' for v in content[name][which]):>20}" for which in ("min", "median", "max"))
        lines.append(f"{name.replace('_zyx_', ' '):14}{shown}")
    lines += ["", "intensity       " + "".join(f"{name:>10}" for name in content["intensity"]["all"])]
    channels = content.get("channels", {"": content["intensity"]})
    for of, name, some in ((of, name, some) for of, both in channels.items() for name, some in both.items()):
        lines.append(f"{f'{of} {name}'.strip():16}" + "".join(f"{value:>10g}" for value in some.values()))
    if content["classes"]:
        width = max(16, *(len(name) + 2 for name in content["classes"]))
        lines += ["", f"{'class, ml':{width}}{'cases':>7}{'min':>12}{'median':>12}{'max':>12}"]
        for name, of in content["classes"].items():
            some = of["volume_ml"] or {}
            shown = "".join(f"{some[which]:>12g}" if some else f"{'-':>12}" for which in ("min", "median", "max"))
            lines.append(f"{name:{width}}{of['cases']:>7}{shown}")
    return lines


def proposal(content: dict[str, Any]) -> list[str]:
    """Writes a proposal as lines of a study file, each with its reason."""
    spacing, intensity, crop = content["why"]
    own = content["prepare"].get("channels", {})
    scales = {name: _scale(one) for name, one in own.items()}
    return [
        "# Proposed for the study; change what you know better.",
        "prepare:",
        f"  # {spacing}",
        f"  spacing_zyx_mm: {json.dumps(content['prepare']['spacing_zyx_mm'])}",
        f"  # {intensity}",
        f"  intensity: {_scale(content['prepare']['intensity'])}",
        *(["  channels:", *(f"    {name}: {scale}" for name, scale in scales.items())] if scales else []),
        "finetune:",
        f"  # {crop}",
        f"  crop_vox: {json.dumps(content['finetune']['crop_vox'])}",
    ]


def _scale(scaling: dict[str, Any]) -> str:
    return f"{{kind: {scaling['kind']}, low: {scaling['low']:g}, high: {scaling['high']:g}}}"
