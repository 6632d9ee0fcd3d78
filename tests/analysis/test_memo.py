"""What is computed once while a report is written, and only then."""

import pandas as pd

from analysis import memo

asked = []


@memo.once
def doubled(frame):
    asked.append(len(frame))
    return 2 * frame


def test_frames_may_change_while_nothing_is_remembered():
    frame = pd.DataFrame({"a": [1, 2]})
    assert doubled(frame)["a"].tolist() == [2, 4]
    frame.loc[0, "a"] = 5
    assert doubled(frame)["a"].tolist() == [10, 4]


def test_a_result_is_computed_once_per_frame_and_each_caller_owns_a_copy():
    first, second = pd.DataFrame({"a": [1, 2]}), pd.DataFrame({"a": [1, 2, 3]})
    asked.clear()
    with memo.remembered():
        spoilt = doubled(first)
        spoilt.loc[0, "a"] = -1
        spoilt["b"] = 0
        for _ in range(3):
            assert doubled(first).to_dict("list") == {"a": [2, 4]}
            assert doubled(second).to_dict("list") == {"a": [2, 4, 6]}
    assert asked == [2, 3]
    doubled(first)
    assert asked == [2, 3, 2]
