"""Labels as the core takes them, however they came."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lossd.protocols.targets import Labels, read_labels
from lossd_client.errors import LabelOutOfRangeError


@given(st.data(), st.sampled_from([np.uint8, np.int8, np.int16, np.int32, np.int64]))
def test_labels_are_classes_and_the_ignored(data: st.DataObject, dtype: type) -> None:
    classes = data.draw(st.sampled_from([2, 5, 127, 128, 200]))
    ignored = data.draw(st.sampled_from([None, -1, 0, 3, 100, 255]))
    usual = st.sampled_from([0, 1, classes - 1, 254, 255, -1])
    fits = usual.filter(lambda value: np.iinfo(dtype).min <= value <= np.iinfo(dtype).max)
    target = data.draw(arrays.arrays(dtype, (1, 2, 3), elements=fits, fill=st.nothing()))
    before = target.copy()
    kind = Labels(classes, ignored, "multiclass")
    expected = [
        -1 if label == ignored else label if 0 <= label < classes else None
        for label in target.reshape(-1).tolist()
    ]
    if None in expected:
        with pytest.raises(LabelOutOfRangeError):
            read_labels(target, kind, None, ("target",))
    else:
        found = read_labels(target, kind, None, ("target",))
        assert found.reshape(-1).tolist() == expected
        assert found.flags.c_contiguous
        masked = read_labels(target, kind, np.array([[[True] * 3, [False] * 3]]), ("target",))
        assert masked.reshape(-1).tolist() == [*expected[:3], -1, -1, -1]
    assert (target == before).all()
