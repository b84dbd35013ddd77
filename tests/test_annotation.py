"""Encodings of label arrays: what their values mean is never guessed."""

import pytest

from cellmap_core.annotation import read_encoding
from cellmap_core.errors import AnnotationError


def attributes(**encoding):
    kind = {"type": "semantic_segmentation", "encoding": encoding}
    return {"cellmap": {"annotation": {"annotation_type": kind}}}


def test_the_same_encoding_in_both_places_is_one():
    both = attributes(absent=0, present=1, unknown=255)
    assert read_encoding(both, both, location="mito").unknown == 255
    assert read_encoding({}, both, location="mito").present == 1


@pytest.mark.parametrize(
    ("array", "group", "reason"),
    [
        ({"absent": 0, "present": 1, "unknown": 0}, None, "one value for each state"),
        ({"absent": 0, "present": 0}, None, "one value for each state"),
        ({"absent": 0, "present": 1}, {"absent": 1, "present": 0}, "different encodings"),
    ],
)
def test_encodings_that_contradict_themselves_are_refused(array, group, reason):
    documents = [attributes(**array), attributes(**group) if group else {}]
    with pytest.raises(AnnotationError, match=f"mito.*{reason}"):
        read_encoding(*documents, location="mito")
