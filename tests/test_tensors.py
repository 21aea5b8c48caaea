"""The store of kept tensors: what stays, what goes first, and that nobody reaches another's."""

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lossd import metrics
from lossd.callers import ANONYMOUS, Allowance, Caller
from lossd.settings import Settings
from lossd.tensors import ENTRY_BYTES, Finder, Kept, TensorStore
from lossd_client.errors import TooLargeError
from lossd_client.wire import Array

MIB = 1 << 20
TTL_S = 100.0
A, B, C = (Caller(name=name) for name in "abc")


class Kit:
    """A store with a clock that stands still, and tensors of so many KiB with their entry."""

    def __init__(self, total_mib: int = 2, key_mib: int = 1) -> None:
        self.now = 0.0
        settings = Settings(max_tensor_mib=total_mib, key_tensor_mib=key_mib, tensor_ttl_s=TTL_S)
        self.store = TensorStore(settings, clock=lambda: self.now)

    def put(self, caller: Caller, kib: int, fill: int = 0) -> Kept:
        array = np.full(kib * 1024 - ENTRY_BYTES, fill, np.uint8)
        return self.store.put(caller, {"one": array})["one"]

    def has(self, caller: Caller, ref: str) -> bool:
        return self.store.find(caller, ref) is not None


@pytest.fixture
def kit() -> Kit:
    return Kit()


def test_what_is_found_is_what_was_put(kit: Kit) -> None:
    arrays: dict[str, Array] = {
        "floats": np.random.default_rng(0).normal(size=(2, 3, 4)),
        "transposed": np.arange(12, dtype=np.int16).reshape(3, 4).T,
        "nothing": np.zeros((0, 3), np.float16),
        "a number": np.array(7, np.int64),
        "on odd bytes": np.frombuffer(bytes(range(33)), np.int64, offset=1),
    }
    kept = kit.store.put(A, arrays)
    for name, array in arrays.items():
        entry = kit.store.find(A, kept[name].ref)
        assert entry is not None
        np.testing.assert_array_equal(entry.array, array)
        assert entry.array.dtype == array.dtype
        assert entry.array.flags.c_contiguous
        assert entry.array.flags.aligned
        assert (kept[name].dtype, kept[name].shape) == (array.dtype.name, array.shape)
        assert kept[name].nbytes == array.nbytes


def test_what_is_kept_is_a_copy_that_numpy_does_not_write_to(kit: Kit) -> None:
    array = np.ones(5)
    ref = kit.store.put(A, {"t": array})["t"].ref
    array[:] = 2
    entry = kit.store.find(A, ref)
    assert entry is not None
    assert entry.array.tolist() == [1] * 5
    with pytest.raises(ValueError, match="read-only"):
        entry.array[0] = 3


def test_an_equal_tensor_of_one_caller_is_one_and_of_two_callers_two(kit: Kit) -> None:
    first, again, others = kit.put(A, 10), kit.put(A, 10), kit.put(B, 10)
    assert (first.was_there, again.was_there, others.was_there) == (False, True, False)
    assert first.ref == again.ref != others.ref


@pytest.mark.parametrize(
    "other",
    [
        np.zeros((3, 2), np.float32),
        np.zeros(6, np.float32),
        np.zeros((2, 3), np.int32),
        np.array([[0, 0, 0], [0, 0, -0.0]], np.float32),
    ],
)
def test_tensors_that_differ_in_anything_are_two(kit: Kit, other: Array) -> None:
    kept = kit.store.put(A, {"one": np.zeros((2, 3), np.float32), "other": other})
    assert kept["one"].ref != kept["other"].ref


def test_a_ref_of_one_process_is_nothing_in_another() -> None:
    assert Kit().put(A, 10).ref != Kit().put(A, 10).ref


def test_nobody_finds_or_deletes_what_another_has_kept(kit: Kit) -> None:
    ref = kit.put(A, 10).ref
    assert not kit.has(B, ref)
    assert not kit.store.delete(B, ref)
    assert kit.has(A, ref)


def test_a_deleted_tensor_is_gone(kit: Kit) -> None:
    ref = kit.put(A, 10).ref
    assert kit.store.delete(A, ref)
    assert not kit.has(A, ref)
    assert not kit.store.delete(A, ref)


def test_over_ones_own_budget_the_one_used_longest_ago_goes(kit: Kit) -> None:
    first, second, third = (kit.put(A, 300, fill).ref for fill in range(3))
    assert kit.has(A, first)  # which makes the second one the oldest
    fourth = kit.put(A, 400, 4).ref
    assert [kit.has(A, ref) for ref in (first, second, third, fourth)] == [True, False, True, True]


def test_over_ones_own_budget_others_lose_nothing(kit: Kit) -> None:
    theirs = kit.put(B, 1024).ref
    for fill in range(20):
        kit.put(A, 500, fill)
    assert kit.has(B, theirs)


def test_over_the_budget_of_all_whoever_holds_most_loses(kit: Kit) -> None:
    most = [kit.put(A, 250, fill).ref for fill in range(4)]
    little = kit.put(B, 600).ref
    newest = kit.put(C, 700).ref
    assert [kit.has(A, ref) for ref in most] == [False, False, True, True]
    assert kit.has(B, little)
    assert kit.has(C, newest)


def test_who_would_hold_most_pushes_nobody_out(kit: Kit) -> None:
    smaller = [kit.put(one, 700).ref for one in (A, B)]
    with pytest.raises(TooLargeError, match="1433600 are taken by callers who keep less"):
        kit.put(C, 800)
    assert [kit.has(one, ref) for one, ref in zip((A, B), smaller, strict=True)] == [True, True]
    kit.put(C, 600)


def test_what_is_larger_than_a_budget_is_refused_and_pushes_nothing_out(kit: Kit) -> None:
    ref = kit.put(A, 500).ref
    with pytest.raises(TooLargeError, match=r"take 1049600 bytes.*may keep 1048576"):
        kit.put(A, 1025)
    two = {str(fill): np.full(600 << 10, fill, np.uint8) for fill in range(2)}
    with pytest.raises(TooLargeError, match="2 tensors take"):
        kit.store.put(A, two)
    assert kit.has(A, ref)


def test_an_allowance_goes_before_the_default(kit: Kit) -> None:
    none = Caller(name="a", allowance=Allowance(tensor_mib=0))
    more = Caller(name="b", allowance=Allowance(tensor_mib=5))
    with pytest.raises(TooLargeError, match="may keep 0"):
        kit.put(none, 1)
    kit.put(more, 2048)  # but no more than all may
    with pytest.raises(TooLargeError, match="may keep 2097152"):
        kit.put(more, 2049)


def test_small_tensors_are_charged_for_their_entry(kit: Kit) -> None:
    refs = [
        kit.store.put(A, {"t": np.array(number)})["t"].ref for number in range(MIB // ENTRY_BYTES)
    ]
    assert sum(kit.has(A, ref) for ref in refs) == MIB // (ENTRY_BYTES + 8)


def test_every_use_begins_the_time_anew(kit: Kit) -> None:
    assert kit.put(A, 10).expires_in_s == TTL_S
    ref = kit.put(A, 20).ref
    kit.now = 90
    assert kit.put(A, 10).expires_in_s == TTL_S
    kit.now = 150
    assert not kit.has(A, ref)
    assert kit.put(A, 10).was_there
    kit.now = 250
    assert not kit.put(A, 10).was_there


def test_what_nobody_uses_goes_without_a_call_about_it(kit: Kit) -> None:
    before = metrics.TENSORS._value.get()  # noqa: SLF001 - the library shows it nowhere else
    kit.put(A, 10)
    kit.put(B, 10)
    kit.now = TTL_S
    kit.store.expire()
    assert metrics.TENSORS._value.get() == before  # noqa: SLF001


def test_a_request_that_names_a_tensor_often_uses_it_once_and_keeps_it(kit: Kit) -> None:
    ref = kit.put(A, 10).ref
    find = Finder(kit.store, A)
    hits = metrics.TENSOR_LOOKUPS.labels("hit")._value.get()  # noqa: SLF001
    first = find(ref)
    kit.store.delete(A, ref)
    assert find(ref) is first is not None
    assert metrics.TENSOR_LOOKUPS.labels("hit")._value.get() == hits + 1  # noqa: SLF001
    assert find("unknown") is None


def test_an_equal_tensor_from_many_threads_is_kept_once() -> None:
    kit = Kit(total_mib=64, key_mib=64)
    found: list[Kept] = []

    def put() -> None:
        found.extend(kit.put(A, 200, fill) for fill in range(30))

    threads = [threading.Thread(target=put) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 120
    assert sum(not one.was_there for one in found) == len({one.ref for one in found}) == 30


class StoreMachine(RuleBasedStateMachine):
    """Whatever happens, the budgets hold, the oldest go first and everybody has their own."""

    def __init__(self) -> None:
        super().__init__()
        self.kit = Kit()
        self.kept: dict[str, dict[str, tuple[int, float]]] = {}
        """What should be there: KiB and last use by caller and ref, oldest first."""
        self.refs: list[tuple[Caller, str]] = []

    def held(self, name: str) -> int:
        return sum(kib for kib, _ in self.kept.get(name, {}).values())

    def drop_oldest(self, name: str) -> None:
        self.kept[name].pop(next(iter(self.kept[name])))

    def expire(self) -> None:
        for own in self.kept.values():
            for ref in [ref for ref, (_, used) in own.items() if used <= self.kit.now - TTL_S]:
                del own[ref]

    @rule(
        caller=st.sampled_from((A, B, C)),
        kib=st.sampled_from((60, 300, 500, 900)),
        fill=st.integers(0, 2),
    )
    def put(self, caller: Caller, kib: int, fill: int) -> None:
        self.expire()
        before = {name: dict(own) for name, own in self.kept.items()}
        own = self.kept.setdefault(caller.name, {})
        try:
            kept = self.kit.put(caller, kib, fill)
        except TooLargeError:
            others = [self.held(name) for name in self.kept if name != caller.name]
            assert sum(others) + kib > 2048
            assert any(kib > other for other in others)
            self.kept = before
            return
        self.refs.append((caller, kept.ref))
        assert kept.was_there == (kept.ref in own)
        own.pop(kept.ref, None)
        if not kept.was_there:
            while self.held(caller.name) + kib > 1024:
                self.drop_oldest(caller.name)
            while sum(map(self.held, self.kept)) + kib > 2048:
                new = {name: self.held(name) + kib * (name == caller.name) for name in self.kept}
                self.drop_oldest(max(new, key=lambda name: (new[name], name != caller.name, name)))
        own[kept.ref] = kib, self.kit.now

    @rule(pick=st.randoms(), caller=st.sampled_from((A, B, C)))
    def find(self, pick: Any, caller: Caller) -> None:
        if self.refs:
            self.expire()
            _, ref = pick.choice(self.refs)
            own = self.kept.get(caller.name, {})
            assert self.kit.has(caller, ref) == (ref in own)
            if ref in own:
                own[ref] = own.pop(ref)[0], self.kit.now

    @rule(pick=st.randoms())
    def delete(self, pick: Any) -> None:
        if self.refs:
            self.expire()
            caller, ref = pick.choice(self.refs)
            known = self.kept.get(caller.name, {}).pop(ref, None)
            assert self.kit.store.delete(caller, ref) == (known is not None)

    @rule(seconds=st.sampled_from((1, 60)))
    def wait(self, seconds: float) -> None:
        self.kit.now += seconds

    @invariant()
    def budgets_hold(self) -> None:
        self.kit.store.expire()
        self.expire()
        shares = self.kit.store._shares  # noqa: SLF001 - the one place that shows everything
        assert {name: list(share.entries) for name, share in shares.items()} == {
            name: list(own) for name, own in self.kept.items() if own
        }
        for name, share in shares.items():
            assert share.nbytes == self.held(name) * 1024 <= MIB
        assert sum(share.nbytes for share in shares.values()) <= 2 * MIB


StoreMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestStoreMachine = StoreMachine.TestCase


def test_whoever_shows_no_key_is_one_caller(kit: Kit) -> None:
    assert kit.put(ANONYMOUS, 10).ref == kit.put(Caller(name="anonymous"), 10).ref
