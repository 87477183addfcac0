"""The list of mutations does not rot, and what is judged of a run of them."""

from __future__ import annotations

import json
import re

import mutate
import pytest
from mutate import DATA, PAGE, judge, render
from mutations import MODELS, ROOT, Mutation, Stale, mutations

from dmcore.model.registry import modelled

EVERY = mutations()
ONE = Mutation("zero", "reads give ones", "zero.py", "a = 1\n", "a = 2\n")


def found(outcome, by=""):
    return {"outcome": outcome, "by": by, "examples": "dev"}


@pytest.mark.parametrize("mutation", EVERY, ids=lambda mutation: mutation.name)
def test_every_old_text_is_there_exactly_once_and_the_new_one_is_python(mutation):
    text = (ROOT / MODELS / mutation.file).read_text(encoding="utf-8")
    compile(mutation.applied(text), mutation.file, "exec")


def test_there_are_many_and_at_least_one_of_every_model():
    assert len(EVERY) >= 60
    assert {mutation.target for mutation in EVERY} == set(modelled())


def test_an_old_text_that_is_not_there_once_makes_the_list_stale():
    with pytest.raises(Stale, match=r"(?s)stale: zero: reads give ones: .* is not there in .*zero\.py"):
        ONE.applied("b = 1\n")
    with pytest.raises(Stale, match="is there 2 times"):
        ONE.applied("a = 1\na = 1\n")
    assert ONE.applied("a = 1\nb = 1\n") == "a = 2\nb = 1\n"


def test_a_target_without_any_is_told():
    with pytest.raises(Stale, match="nothing about nonsense; it has cache, "):
        mutations("nonsense")
    assert {mutation.target for mutation in mutations("dust", "zero")} == {"dust", "zero"}


def test_a_survivor_needs_a_reason_and_a_reason_a_survivor():
    reasoned = Mutation("zero", "x", "zero.py", "a", "b", "nobody looks")
    assert judge(ONE, found("survived")).startswith("survives")
    assert (
        judge(reasoned, found("found", "test_alone")) == "has a reason to survive, but is found by test_alone"
    )
    assert judge(ONE, found("broken", "SyntaxError")) == "does not run: SyntaxError"
    for fine in (
        judge(reasoned, found("survived")),
        judge(ONE, found("found")),
        judge(ONE, found("time-out")),
    ):
        assert not fine


def test_a_guest_that_is_lost_counts_for_what_ran_in_it_and_another_one_goes_on(monkeypatch):
    jobs = []

    def said(command, job):
        names = json.loads(job)[1]
        jobs.append(names)
        for name in names:
            yield {"name": name}
            if name == "b" or len(jobs) > 2:
                return
            yield {"name": name, **found("survived")}

    monkeypatch.setattr(mutate, "_said", said)
    outcomes = {name: result["outcome"] for name, result in mutate.in_guests(["a", "b", "c"], "k", ["dev"])}
    assert outcomes == {"a": "survived", "b": "guest lost", "c": "survived"}
    assert jobs == [["a", "b", "c"], ["c"]]


def test_guests_that_do_nothing_are_not_tried_for_ever(monkeypatch):
    monkeypatch.setattr(mutate, "_said", lambda command, job: iter(()))
    with pytest.raises(SystemExit, match="the guest did nothing: a is left"):
        list(mutate.in_guests(["a"], "k", ["dev"]))


def test_the_page_is_made_of_what_is_kept():
    kept = json.loads(DATA.read_text(encoding="utf-8"))
    assert PAGE.read_text(encoding="utf-8") == render(EVERY, kept), (
        "make it again: tests/tools/mutate.py --page"
    )
    rows = re.findall(r"^\| [a-z-]+ \| .* \| `.*\.py` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == len(EVERY)
    assert kept["results"].keys() <= {mutation.name for mutation in EVERY}
