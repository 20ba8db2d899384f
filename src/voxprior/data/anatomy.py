"""Codes for class names: SNOMED CT where pydicom's dictionary has a term for the name, else a private code of ours.

No code is written down here: names become terms, and pydicom knows the terms' codes (from DICOM PS3.16).
"""

import hashlib
import re
from typing import Any, NamedTuple

SCHEME = "99VOXPRIOR"  # private: 99 and a name, DICOM PS3.16, chapter 8

# Names as TotalSegmentator, BTCV and others write them, where the term is not the name itself.
TERMS = {
    "adrenal": "AdrenalGland",
    "atrial_appendage_left": "LeftAuricularAppendage",
    "autochthon": "ErectorSpinaeMuscle",
    "bladder": "Bladder",
    "clavicula": "Clavicle",
    "iliac_artery": "CommonIliacArtery",
    "iliac_vena": "CommonIliacVein",
    "lung_lower_lobe": "LowerLobeOfLung",
    "lung_middle_lobe_right": "MiddleLobeOfRightLung",
    "lung_upper_lobe": "UpperLobeOfLung",
    "myocardium": "LeftVentricleMyocardium",
    "portal_vein": "PortalVein",
    "small_bowel": "SmallIntestine",
    "thyroid_gland": "Thyroid",
    "urinary_bladder": "Bladder",
    "vena_cava_inferior": "InferiorVenaCava",
    "ventricle_left": "LeftVentricle",
    "ventricle_right": "RightVentricle",
    "atrium_left": "LeftAtrium",
    "atrium_right": "RightAtrium",
    "aorta_ascending": "AscendingAorta",
}
ABNORMAL = {
    "tumour": "Neoplasm",
    "tumor": "Neoplasm",
    "cancer": "Neoplasm",
    "cyst": "Cyst",
    "edema": "Edema",
    "oedema": "Edema",
    "lesion": "Lesion",
    "nodule": "Nodule",
}
# Words that have a code, and name a place and nothing that lies there.
PLACES = {"anterior", "posterior", "superior", "inferior", "medial", "lateral", "proximal", "distal", "central"}
SIDES = {"left": "Left", "right": "Right"}


class Coded(NamedTuple):
    """What a class is: `pydicom.sr.coding.Code`s of category and type, its side, and the organ that it lies in."""

    category: Any
    kind: Any
    side: Any = None
    region: Any = None


def coded(name: str) -> Coded:
    """Finds codes for a class name."""
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    if name in TERMS:
        return Coded(codes.SCT.AnatomicalStructure, _term(TERMS[name]))
    words = name.lower().split("_")
    side = next((_term(SIDES[word]) for word in words if word in SIDES), None)
    rest = [word for word in words if word not in SIDES and not word.isdigit()]
    abnormal = next((_term(ABNORMAL[word]) for word in rest if word in ABNORMAL), None)
    organ = _organ([word for word in rest if word not in ABNORMAL], name)
    if abnormal is not None:
        return Coded(codes.SCT.MorphologicallyAbnormalStructure, abnormal, side, organ)
    if organ is not None:
        return Coded(codes.SCT.AnatomicalStructure, organ, side)
    meaning = name.replace("_", " ")[:64]
    own = Code(hashlib.sha256(name.encode()).hexdigest()[:12].upper(), SCHEME, meaning)
    return Coded(codes.SCT.AnatomicalStructure, own)


def _organ(words: list[str], name: str) -> Any:
    if vertebra := re.fullmatch(r"vertebrae?_([CTL]\d+)", name):
        return _term(f"{vertebra[1]}Vertebra")
    if PLACES.issuperset(words):
        return None
    plain = "_".join(words)
    for one in (plain, plain.removesuffix("s")):
        found = _term(TERMS.get(one) or "".join(word.capitalize() for word in one.split("_")))
        if found is not None:
            return found
    return None


def _term(keyword: str) -> Any:
    """Gives the code of a SNOMED CT term; None where pydicom has none, or several."""
    from pydicom.sr.codedict import codes

    try:
        return getattr(codes.SCT, keyword) if keyword else None
    except (AttributeError, RuntimeError):
        return None
