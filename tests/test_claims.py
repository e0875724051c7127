"""The ledger of claims: the rule that turns records into verdicts, and that the shipped claims can fail."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from hrlib.cli import app
from hrlib.errors import BatchError, InvalidValue, StoreError, UnknownName
from hrlib.lab.records import Records, read
from hrlib.runner import batch, claims, ledger, report
from hrlib.runner.claims import NOT_REPRODUCED, NOT_YET, PAPER_ONLY, PARTLY, REPRODUCED, Cause, Claim, Condition, judge

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = claims.load(ROOT / "notebooks/claims.yaml")


def claim(*conditions: Condition | str, **fields) -> Claim:
    made = tuple(c if isinstance(c, Condition) else Condition(f"k{i}", c) for i, c in enumerate(conditions))
    return Claim("some-claim", "IV-B", "It is so.", "02_loss_diagnostics", made, **fields)


def recorded(*rows: dict) -> dict[str, dict]:
    """Records under the keys k0, k1, ... that `claim` gives its conditions."""
    records = Records()
    for i, row in enumerate(rows):
        records.add(f"k{i}", **row)
    return {row["key"]: row for row in records.rows()}


def verdict(expect: str, **row) -> str:
    return judge(claim(expect), recorded(row)).verdict


def test_recorded_runs_at_1024_pixels_have_a_verdict_of_their_own():
    one = claim("> 0", at_1024=(Condition("k1", "> 0"),))
    strong, weak = {"value": 5.0, "spread": 1.0, "n": 8}, {"value": -5.0, "spread": 1.0, "n": 8}
    found = judge(one, recorded(strong, weak))
    assert (found.verdict, found.at_1024.verdict) == ("reproduced", "not reproduced") and found.claim is one
    assert "not reproduced: -5 ± 1, n = 8" in ledger.at_1024(found) and "-5 ± 1, n = 8" in ledger.markdown([found], "x")
    assert ledger.tidy([found])[0]["at_1024"]["conditions"][0]["key"] == "k1"
    missing = judge(one, recorded(strong))
    assert missing.at_1024.verdict == "not yet computed" and not missing.problems, "runs may still be missing"
    assert judge(claim("> 0"), recorded(strong)).at_1024 is None
    assert ledger.at_1024(judge(claim("> 0"), recorded(strong))) == ""


# --- the rule ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expect", "value", "spread", "n", "interval", "right"),
    [
        ("> 0", 2.0, 1.9, 8, None, REPRODUCED),
        ("> 0", 2.0, 2.1, 8, None, PARTLY),  # t_7(.975) = 2.36, times 2.1 / sqrt 8 = 1.76
        ("> 0", 2.0, 2.5, 8, None, NOT_REPRODUCED),  # 2.09
        ("> 0", 2.0, 3.0, 8, (0.1, 3.9), NOT_REPRODUCED),  # the wider of the two intervals counts
        ("> 0", 2.0, 2.1, 8, (-0.1, 4.1), NOT_REPRODUCED),
        ("> 0", -2.0, 0.1, 8, (-2.1, -1.9), NOT_REPRODUCED),
        ("> 0", 0.0, 0.0, 8, (0.0, 0.0), NOT_REPRODUCED),
        ("< 0", -2.0, 1.9, 8, None, REPRODUCED),
        ("< 0", 2.0, 0.1, 8, None, NOT_REPRODUCED),
        ("> 1", 1.5, 0.6, 100, (1.4, 1.6), PARTLY),
        ("> 1", 0.9, 0.01, 100, None, NOT_REPRODUCED),
        ("between [-1, 1]", 0.2, 0.7, 8, None, REPRODUCED),
        ("between [-1, 1]", 0.2, 0.9, 8, (-0.4, 0.9), PARTLY),
        ("between [-1, 1]", 0.2, 0.9, 8, (-1.1, 0.9), NOT_REPRODUCED),
        ("between [-1, 1]", 0.2, 0.9, 8, (-0.4, 1.1), NOT_REPRODUCED),
        ("between [-1, 1]", -1.2, 0.1, 8, None, NOT_REPRODUCED),
        ("> 0", 2.0, 0.1, 1, None, NOT_YET),
        ("> 0", 2.0, 0.1, 3, (1.9, 2.1), NOT_YET),
        ("> 0", 2.0, 0.1, 4, None, REPRODUCED),
        ("> 0", 2.0, 1.3, 4, None, NOT_REPRODUCED),  # t_3(.975) = 3.18: more than its spread, and still not sure
        ("> 0", 2.0, None, 8, None, NOT_YET),
    ],
)
def test_means(expect, value, spread, n, interval, right):
    assert verdict(expect, value=value, spread=spread, n=n, interval=interval) == right


@pytest.mark.parametrize(
    ("expect", "value", "spread", "interval", "right"),
    [
        ("between [-1, 1]", 0.2, 5.0, (-0.2, 0.6), REPRODUCED),  # however much the images differ
        ("between [-1, 1]", 0.2, 0.1, (-1.1, 1.5), PARTLY),
        ("between [-1, 1]", 1.2, 0.1, (1.1, 1.3), NOT_REPRODUCED),
        ("< 0.1", -3.0, 9.0, (-3.9, -2.1), REPRODUCED),  # one-sided: worse is no improvement either
        ("< 0.1", 0.0, 9.0, (-0.2, 0.2), PARTLY),
    ],
)
def test_that_nothing_much_happens_is_sure_once_the_interval_is_within_the_margin(
    expect, value, spread, interval, right
):
    stated = claim(Condition("k0", expect, margin=True))
    assert judge(stated, recorded({"value": value, "spread": spread, "n": 400, "interval": interval})).verdict == right


@pytest.mark.parametrize(
    ("expect", "margin", "value", "right"),
    [
        ("> 0", False, 1.0, claims.SMALLER),  # standard deviation 2, n = 64: half of the interval is 0.5
        ("> 0", False, 0.3, claims.UNSURE),
        ("> 0", False, -0.3, claims.UNSURE),
        ("> 0", False, -1.0, claims.AGAINST),
        ("> 0", False, 3.0, ""),
        ("between [-1, 1]", True, 0.8, claims.OUTSIDE),
        ("between [-1, 1]", True, 3.0, claims.OUTSIDE),
        ("between [-1, 1]", True, 0.1, ""),
    ],
)
def test_without_a_cause_the_numbers_say_what_they_can(expect, margin, value, right):
    row = {"value": value, "spread": 2.0, "n": 64, "interval": None}
    assert judge(claim(Condition("k0", expect, margin=margin)), recorded(row)).why == right


def test_a_failing_claim_says_why_if_a_control_tells():
    first = Cause("network", "it is small", (Condition("k1", "< 0"),))
    second, argued = Cause("experiment", "too short", (Condition("k1", "> 0"),)), Cause("paper", "it says both")
    stated = claim("> 0", causes=(first, second, argued))
    assert judge(stated, recorded(BAD, GOOD)).why == "the experiment: too short"
    assert judge(stated, recorded(BAD, BAD)).why == "a network: it is small"
    assert judge(stated, recorded(BAD)).why == "the paper: it says both (argued)", "a control that was not recorded"
    assert judge(stated, recorded(GOOD, GOOD)).why == "", "it does not fail"
    assert judge(claim("> 0"), recorded(BAD)).why == claims.AGAINST
    typo = Cause("world", "x", (Condition("kl", "> 0"),))
    assert "control kl" in judge(claim("> 0", causes=(typo,)), recorded(BAD)).problems[0]
    large = claim("> 0", at_1024=(Condition("k1", "> 0"),), causes_at_1024=(argued,))
    assert "at 1024 pixels" in judge(large, recorded(BAD, GOOD)).why
    assert judge(large, recorded(BAD, BAD)).why == claims.AGAINST
    found = judge(large, recorded(BAD, BAD))
    here = claims.AGAINST[0].upper() + claims.AGAINST[1:]
    assert ledger.reason(found) == f"{here}. At 1024 px: the paper: it says both (argued)"
    assert ledger.reason(judge(large, recorded(GOOD, GOOD))) == ""


def test_the_same_numbers_count_once():
    """Whatever their names are; but not if they are held against other bounds, or if the verdicts differ."""
    one, two = claim("> 0"), replace(claim(Condition("other", "> 0")), id="two")
    opposite, more = replace(claim("< 0"), id="opposite"), replace(claim("> 0", "> 0"), id="more")
    records = recorded(GOOD, WEAK | {"value": 1.6})
    records["other"] = records["k0"] | {"key": "other"}
    marked = claims.distinct([judge(c, records) for c in (one, two, opposite, more)])
    assert [v.restates for v in marked] == ["", "some-claim", "", ""]
    assert ledger.summary(marked).startswith("3 claims (and 1 that restates others on the same numbers): 1 reproduced")
    assert "The same numbers as some-claim" in ledger.markdown(marked, "x")
    worse = [replace(v, at_1024=v, restates="") for v in marked[:1]] + [replace(v, restates="") for v in marked[1:]]
    assert not any(v.restates for v in claims.distinct(worse)[:2]), "their verdicts at 1024 pixels differ"
    readme = ledger.with_block("<!-- claims -->\n<!-- /claims -->\n", marked)
    assert readme.count("It is so.") == 3


def test_counts_and_truths_need_no_spread():
    exact = claim(Condition("k0", "> 1e7", exact=True))
    assert judge(exact, recorded({"value": 6143 * 1677})).verdict == REPRODUCED
    assert judge(exact, recorded({"value": 10**6})).verdict == NOT_REPRODUCED
    assert verdict("is true", value=True) == REPRODUCED
    assert verdict("is true", value=False) == NOT_REPRODUCED
    for expect, value in (("is true", 1.0), ("> 0", True), ("> 0", "much"), ("is true", "yes")):
        found = judge(claim(expect), recorded({"value": value, "spread": 0.1, "n": 9}))
        assert found.verdict == NOT_YET and "cannot be held against" in found.problems[0]


GOOD, WEAK, BAD = ({"value": v, "spread": 2.0, "n": 16} for v in (5.0, 1.5, -5.0))


@pytest.mark.parametrize(
    ("rows", "right", "weakest"),
    [
        ((GOOD, GOOD), REPRODUCED, "k0"),
        ((GOOD, WEAK), PARTLY, "k1"),
        ((WEAK, WEAK), PARTLY, "k0"),
        ((GOOD, BAD), PARTLY, "k1"),
        ((BAD, WEAK, GOOD), PARTLY, "k0"),
        ((BAD, BAD), NOT_REPRODUCED, "k0"),
        ((BAD, GOOD | {"n": 2}), NOT_YET, "k1"),
    ],
)
def test_several_conditions(rows, right, weakest):
    found = judge(claim(*["> 0"] * len(rows)), recorded(*rows))
    assert found.verdict == right and found.weakest.condition.key == weakest


def test_what_has_no_verdict_says_why():
    away = judge(claim("> 0"), None, "laptop")
    assert away.verdict == NOT_YET and away.why == "02_loss_diagnostics has not run at laptop" and not away.problems
    found = judge(claim(Condition("psnr/cnov", "> 0")), {"psnr/conv": recorded(GOOD)["k0"]})
    assert found.verdict == NOT_YET and "did you mean 'psnr/conv'?" in found.problems[0]
    assert not judge(claim("> 0", later=True), {}).problems
    assert "without a spread (n = 1)" in judge(claim("> 0"), recorded({"value": 3.0})).problems[0]
    assert not judge(claim("> 0"), recorded(GOOD | {"n": 2})).problems, "a small profile has few images"


def test_the_scale_of_the_paper():
    large = claim("> 0", scale="paper", note="Needs FFHQ.")
    found = judge(large, recorded(GOOD), "laptop")
    assert found.verdict == PAPER_ONLY and found.why == "Needs FFHQ."
    assert judge(large, recorded(GOOD), "paper").verdict == REPRODUCED
    assert judge(large, recorded(BAD), "paper").verdict == NOT_REPRODUCED


# --- properties -------------------------------------------------------------------------------------------------------

finite = st.floats(-1e6, 1e6, allow_subnormal=False)
positive = st.floats(1e-6, 1e6)
expectation = st.one_of(
    finite.map(lambda a: f"> {a:.6f}"),
    finite.map(lambda a: f"< {a:.6f}"),
    st.tuples(finite, positive).map(lambda t: f"between [{t[0]:.6f}, {t[0] + t[1]:.6f}]"),
).filter(lambda text: len(set(re.findall(r"-?\d+\.\d+", text))) == 1 + text.startswith("between"))


def at(condition: Condition, effect: float) -> float:
    """The value whose effect is `effect` (for an interval: at its lower end)."""
    low, high = condition.bounds
    return low + effect if math.isfinite(low) else high - effect


@given(expectation, positive, st.floats(0, 0.9), st.integers(4, 1000))
def test_a_reversed_effect_is_never_reproduced(expect, e, share, n):
    condition = Condition("k0", expect)
    low, high = condition.bounds
    e = min(e, (high - low) / 2)
    rows = [{"value": at(condition, sign * e), "spread": share * e / 2, "n": n} for sign in (1, -1)]
    good, bad = (judge(claim(condition), recorded(row)).verdict for row in rows)
    assert bad == NOT_REPRODUCED
    assert good == REPRODUCED or e < 1e-6 * max(abs(at(condition, 0)), 1)  # where adding e to the bound rounds


@given(st.floats(0, 1e3), st.floats(1e-3, 1e3), st.integers(1, 10**6), st.none() | st.just((-1.0, 1e4)))
def test_an_effect_within_its_spread_is_never_reproduced(e, more, n, interval):
    row = {"value": e, "spread": e + more, "n": n, "interval": interval}
    assert verdict("> 0", **row) != REPRODUCED


@given(st.lists(st.sampled_from([GOOD, WEAK, BAD]), min_size=1, max_size=5), st.randoms())
def test_the_order_of_records_and_conditions_does_not_matter(rows, random):
    found = list(recorded(*rows).items())
    stated = list(claim(*["> 0"] * len(rows)).conditions)
    expected = judge(claim(*stated), dict(found)).verdict
    random.shuffle(found)
    random.shuffle(stated)
    assert judge(claim(*stated), dict(found)).verdict == expected


# --- the shipped claims -----------------------------------------------------------------------------------------------


def synthetic(stated: Claim, sign: int) -> dict[str, dict]:
    """Records that bear the claim out (sign 1) or go against every condition (sign -1)."""
    records = Records()
    for c in stated.conditions:
        if c.bounds is None:
            records.add(c.key, sign > 0)
        else:
            half = min(1.0, (c.bounds[1] - c.bounds[0]) / 2)
            spread = {} if c.exact else {"n": 8, "spread": half / 4}
            records.add(c.key, at(c, sign * half), **spread)
    return {row["key"]: row for row in records.rows()}


@pytest.mark.parametrize("stated", SHIPPED, ids=lambda c: c.id)
def test_every_claim_can_hold_and_can_fail(stated):
    assert judge(stated, synthetic(stated, 1), "paper").verdict == REPRODUCED
    assert judge(stated, synthetic(stated, -1), "paper").verdict == NOT_REPRODUCED
    assert stated.note or not stated.scale, "a claim that needs the paper's scale says why"


def test_the_whole_paper_is_covered():
    sections = {c.section for c in SHIPPED}
    assert {"I", "III-A", "III-B", "III-C", "III-D", "IV-A", "IV-B", "IV-C", "IV-D", "IV-E", "IV-F"} <= sections
    assert {"IV-G-a", "IV-G-b", "IV-G-c", "IV-G-d"} <= sections
    falls, rises = (next(c for c in SHIPPED if c.id == f"conv-psnr-{way}") for way in ("falls", "rises"))
    assert (falls.section, rises.section) == ("IV-B", "IV-C") and falls.conditions[0].key == rises.conditions[0].key
    assert "32.09 to 31.91" in falls.paper and "31.62 to 33.16" in rises.paper


def test_no_verdict_is_written_by_hand():
    text = (ROOT / "notebooks/claims.yaml").read_text(encoding="utf-8")
    head, _, _ = text.partition("\n\n")
    assert ledger.RULE in " ".join(head.replace("\n#", " ").split()), "the rule in the head is the one that is applied"
    entries = json.dumps(yaml.safe_load(text)).lower()
    assert not re.search(r"reproduc|\bpartly\b|not yet computed|verdict|confirmed|refuted", entries)


def test_the_committed_ledger_is_that_of_the_committed_records():
    verdicts = claims.ledger("laptop")
    again = "run `hrlab run`, then `hrlab claims --readme`"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert ledger.with_block(readme, verdicts) == readme, again
    assert (ROOT / "figures/claims.md").read_text(encoding="utf-8") == ledger.markdown(verdicts, "laptop"), again
    assert json.loads((ROOT / "figures/claims.json").read_text()) == ledger.tidy(verdicts), again
    assert [p for v in verdicts for p in v.problems] == []
    assert [v.claim.id for v in verdicts if v.claim.later and v.verdict in claims.DECIDED] == [], "no longer `later`"


# --- reading ----------------------------------------------------------------------------------------------------------

ENTRY = {
    "id": "a-claim",
    "section": "IV-B",
    "statement": "It is so.",
    "notebook": "02_loss_diagnostics",
    "conditions": [{"key": "psnr/conv", "expect": "> 0"}],
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sektion": "IV"}, "did you mean 'section'?"),
        ({"notebook": "02_loss_diagnostic"}, "did you mean '02_loss_diagnostics'?"),
        ({"scale": "papr"}, "did you mean 'paper'?"),
        ({"conditions": [{"key": "psnr/conv", "expct": "> 0"}]}, "did you mean 'expect'?"),
        ({"conditions": [{"key": "psnr/conv", "expect": "positive"}]}, "expect 'positive'"),
        ({"conditions": [{"key": "psnr/conv", "expect": "between [1, -1]"}]}, "a < b"),
        ({"conditions": [{"key": "psnr/conv", "expect": "is true", "exact": True}]}, "truth values"),
        ({"conditions": [{"key": "psnr/conv", "expect": "is true", "margin": True}]}, "truth values"),
        ({"conditions": [{"key": "psnr/conv", "expect": "> 0", "margin": True, "exact": True}]}, "exact, margin"),
        ({"causes_at_1024": [{"what": "world", "says": "x"}]}, "without at_1024"),
        ({"causes": [{"what": "wrld", "says": "x"}]}, "did you mean 'world'?"),
        ({"causes": [{"what": "world"}]}, "has no says"),
        ({"causes": [{"what": "world", "says": "x", "control": [{"key": "a", "expect": "?"}]}]}, "expect '?'"),
        ({"conditions": [{"key": "PSNR conv", "expect": "> 0"}]}, "key 'PSNR conv'"),
        ({"conditions": []}, "has no conditions"),
        ({"statement": ""}, "has no statement"),
        ({"paper": 32.09}, "paper = 32.09"),
        ({"id": "A claim"}, "lower-case"),
        ({"later": "yes"}, "later = 'yes'"),
    ],
)
def test_wrong_entries_are_refused(tmp_path, change, words):
    path = tmp_path / "claims.yaml"
    (tmp_path / "02_loss_diagnostics.ipynb").touch()
    path.write_text(yaml.safe_dump([ENTRY]))
    assert claims.load(path)[0].conditions == (Condition("psnr/conv", "> 0"),)
    path.write_text(yaml.safe_dump([ENTRY | change]))
    with pytest.raises((BatchError, InvalidValue, UnknownName), match=re.escape(words)):
        claims.load(path)


def test_claims_may_wait_for_a_notebook_that_is_planned(tmp_path):
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump([ENTRY]))
    with pytest.raises(UnknownName, match="notebook '02_loss_diagnostics'"):
        claims.load(tmp_path / "claims.yaml")
    (tmp_path / "planned.yaml").write_text("02_loss_diagnostics: {title: To come}")
    assert claims.load(tmp_path / "claims.yaml")[0].notebook == "02_loss_diagnostics"


@pytest.mark.parametrize("text", ["- id: a: b", "- a-claim", yaml.safe_dump([ENTRY, ENTRY])])
def test_wrong_files_are_refused(tmp_path, text):
    (tmp_path / "claims.yaml").write_text(text)
    (tmp_path / "02_loss_diagnostics.ipynb").touch()
    with pytest.raises(BatchError):
        claims.load(tmp_path / "claims.yaml")
    with pytest.raises(BatchError, match="no_such"):
        claims.load(tmp_path / "no_such.yaml")


# --- what readers meet ------------------------------------------------------------------------------------------------


@pytest.fixture
def small(repo):
    """A repository with one claim, the records that bear it out, and a README; returns a function that records."""
    (repo / "notebooks/claims.yaml").write_text(yaml.safe_dump([ENTRY]))
    (repo / "notebooks/02_loss_diagnostics.ipynb").touch()
    (repo / "README.md").write_text("# Title\n\n<!-- claims -->\nold\n<!-- /claims -->\n\nThe end.\n")

    def record(**row) -> None:
        folder = repo / "figures/02_loss_diagnostics"
        folder.mkdir(parents=True, exist_ok=True)
        records = Records()
        records.add("psnr/conv", unit="dB", **row)
        (folder / "records.json").write_text(json.dumps(records.rows()))

    return record


def test_wrong_records_change_every_page(small, repo):
    pages = {}
    for name, row in {"good": GOOD, "bad": BAD}.items():
        small(**row)
        assert CliRunner().invoke(app, ["claims", "--readme"]).exit_code == 0
        ledger.write("laptop")
        pages[name] = [(repo / page).read_text() for page in ("README.md", "figures/claims.md", "figures/claims.json")]
    for good, bad in zip(pages["good"], pages["bad"], strict=True):
        assert "not reproduced" in bad and good != bad
    good, bad = pages["good"][0], pages["bad"][0]
    assert good.startswith("# Title\n\n<!-- claims -->\n1 claim: 1 reproduced, 0 partly") and "old" not in good
    assert good.endswith("<!-- /claims -->\n\nThe end.\n")
    row = "| IV-B | It is so. | {} | {} ± 2 dB | 16 |  | {} |\n"
    assert row.format("reproduced", "+5", "") in good
    assert row.format("not reproduced", "-5", claims.AGAINST.capitalize()) in bad
    with pytest.raises(StoreError, match="put them back"):
        ledger.with_block("# Title\n", [])


def test_numbers_and_verbs_agree():
    need, good = judge(claim("> 0", scale="paper", note="Why."), {}), judge(claim("> 0"), recorded({"value": 2.0}))
    assert need.verdict == PAPER_ONLY
    assert ledger.summary([need]).startswith("1 claim: ") and ", 1 needs the paper profile," in ledger.summary([need])
    assert ledger.summary([need] * 2).startswith("2 claims: ") and ", 2 need the" in ledger.summary([need] * 2)
    assert ", 0 need the paper profile," in ledger.summary([good])


def test_the_command(small, repo):
    small(**GOOD)
    done = CliRunner().invoke(app, ["claims", "--section", "IV"])
    assert done.exit_code == 0 and "a-claim" in done.stdout and "1 claim: 1 reproduced" in done.stdout
    with pytest.raises(UnknownName, match="did you mean 'IV-B'"):
        CliRunner().invoke(app, ["claims", "--section", "IV-C"], catch_exceptions=False)
    assert CliRunner().invoke(app, ["claims", "--readme", "--profile", "smoke"]).exit_code == 2
    small(value=5.0)
    done = CliRunner().invoke(app, ["claims"])
    assert done.exit_code == 1 and "a-claim: psnr/conv: recorded without a spread (n = 1)" in done.stderr


def test_a_batch_run_writes_the_ledger_beside_the_index(small, repo, write_notebook):
    write_notebook("02_loss_diagnostics", "seed = 0", [])
    small(**GOOD)
    report.write("laptop", batch.plan().known)
    assert "[The ledger of claims](claims.md): 1 claim: 1 reproduced" in (repo / "figures/index.md").read_text()
    (entry,) = json.loads((repo / "figures/claims.json").read_text())
    assert (entry["verdict"], entry["effect"], entry["n"]) == ("reproduced", 5.0, 16)


# --- records ----------------------------------------------------------------------------------------------------------


def test_records_keep_intervals_and_read_old_ones(tmp_path):
    records = Records()
    records.add("a", 1.0, n=5, spread=0.5, interval=(0.5, 1.5))
    records.add("b", 1.0)
    (tmp_path / "records.json").write_text(json.dumps(records.rows()))
    found = read(tmp_path)
    assert found["a"]["interval"] == [0.5, 1.5] and found["b"]["interval"] is None
    assert list(records.compare()["95 %"]) == ["[0.5, 1.5]", ""]
    old = {"key": "k0", "value": 5.0, "unit": "dB", "n": 16, "spread": 2.0, "paper": None}
    (tmp_path / "records.json").write_text(json.dumps([old]))
    assert judge(claim("> 0"), read(tmp_path)).verdict == REPRODUCED
    with pytest.raises(InvalidValue, match="interval = inf"):
        records.add("c", 1.0, interval=(0.0, math.inf))


@pytest.mark.parametrize("text", ["{", "5", '[{"key": "a"}]', '[{"key": "a", "value": 1.0, "n": 0}]', "\ud800"])
def test_records_that_are_none_break_no_command(small, repo, text):
    small(**GOOD)
    (repo / "figures/02_loss_diagnostics/records.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    (verdict,) = claims.ledger("laptop")
    assert verdict.verdict == NOT_YET and "records.json" in verdict.problems[0]
    before = (repo / "README.md").read_bytes()
    said = CliRunner().invoke(app, ["claims", "--readme"])
    assert said.exit_code == 1 and "records.json" in said.stderr, "damaged evidence changes no page"
    assert (repo / "README.md").read_bytes() == before
