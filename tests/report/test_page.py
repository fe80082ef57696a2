"""The page in a real Chromium: drawing, reading, filters, both themes, narrow windows, and hostile text of models."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.browser import Page
from tests.report.conftest import HOSTILE

BACKGROUND = "getComputedStyle(document.body).backgroundColor"
LIGHT, DARK = "rgb(246, 247, 249)", "rgb(18, 21, 26)"


def texts(page: Page, selector: str) -> list[str]:
    found: list[str] = page.run(f"[...document.querySelectorAll({selector!r})].map((node) => node.textContent)")
    return found


def choose(page: Page, label: str, value: str) -> None:
    """Set a filter like a user."""
    page.run(
        f"""(() => {{
        const labels = [...document.querySelectorAll('.filters label')];
        const input = labels.find((l) => l.firstChild.textContent === {label!r}).querySelector('select, input');
        input.value = {value!r};
        input.dispatchEvent(new Event('input'));
        }})()"""
    )


def press_button(page: Page, text: str) -> None:
    page.run(f"[...document.querySelectorAll('.controls button')].find((b) => b.textContent === {text!r}).click()")


def card_of(title: str) -> str:
    """Return the expression for the card with that title."""
    return f"[...document.querySelectorAll('.card')].find((c) => c.querySelector('h3 span').textContent === {title!r})"


@pytest.fixture
def page(chromium: Page, written: Path) -> Page:
    chromium.open(written)
    return chromium


def test_everything_is_drawn_without_an_error_and_without_a_network(page: Page, written: Path) -> None:
    assert page.errors == [] and page.requests == [written.as_uri()]
    assert texts(page, "section > h2") == [
        *("Overview", "Learning", "pass@k", "Verifier", "Engine and trainer", "Optimisation"),
        *("Resharding", "Time", "Rollouts", "Settings"),
    ]
    assert texts(page, ".runname") == ["one", "two"]
    cards = page.run(
        "[...document.querySelectorAll('.grid .card')].map((c) => [c.querySelector('h3 span').textContent,"
        " c.querySelectorAll('svg path').length])"
    )
    assert {"Reward", "KL", "pass@k with intervals", "Verdicts · one", "Seconds by part · two"} <= {t for t, _ in cards}
    assert all(paths > 0 for _, paths in cards)
    assert "NaN" not in page.run("document.querySelector('main').innerHTML")


def test_runs_evaluations_and_other_models_are_told_apart(page: Page) -> None:
    found = texts(page, "#pass-k .legend li")
    assert found == ["base", "one, step 0", "one, step 20", "two, step 0", "two, step 10"]


def test_a_curve_goes_through_its_values(page: Page) -> None:
    """The entropy of run two is 1 / step. Compare its path with the ticks of the axis."""
    card = (
        "[...document.querySelectorAll('.card')].find((c) => c.querySelector('h3').textContent.startsWith('Entropy'))"
    )
    path = page.run(f"{card}.querySelectorAll('path.line')[1].getAttribute('d')")
    points = [tuple(map(float, point.split(","))) for point in path[1:].split("L")]
    ticks = page.run(
        f"[...{card}.querySelectorAll('text')].filter((t) => t.getAttribute('text-anchor') === 'end')"
        ".map((t) => [Number(t.textContent), Number(t.getAttribute('y')) - 4])"
    )
    (low, y_low), (high, y_high) = ticks[0], ticks[-1]
    values = [low + (y - y_low) / (y_high - y_low) * (high - low) for _, y in points]
    assert values == pytest.approx([1 / step for step in range(1, 11)], abs=0.01)


def test_ticks_of_a_constant_are_what_they_say(page: Page) -> None:
    """The learning rate is always 5e-6, and lies there by the labels of its axis."""
    card = card_of("Learning rate")
    y = page.run(f"{card}.querySelector('path.line').getAttribute('d')").partition(",")[2].partition("L")[0]
    ticks = page.run(
        f"[...{card}.querySelectorAll('text')].filter((t) => t.getAttribute('text-anchor') === 'end')"
        ".map((t) => [Number(t.textContent), Number(t.getAttribute('y')) - 4])"
    )
    labels = [value for value, _ in ticks]
    assert len(set(labels)) == len(labels) > 2
    (low, y_low), (high, y_high) = ticks[0], ticks[-1]
    assert low + (float(y) - y_low) / (y_high - y_low) * (high - low) == pytest.approx(5e-6, rel=1e-3)


def test_a_part_has_one_colour_in_every_run(page: Page) -> None:
    """Run two has one more phase before the others, and the colours stay the same."""
    colours = [
        page.run(
            f"Object.fromEntries([...{card_of(f'Seconds by phase · {run}')}.querySelectorAll('.legend li')]"
            ".map((item) => [item.textContent, item.firstChild.style.background]))"
        )
        for run in ("one", "two")
    ]
    assert set(colours[1]) == {*colours[0], "reshard"}
    assert all(colours[1][phase] == colour for phase, colour in colours[0].items())
    assert len(set(colours[1].values())) == 3
    verdicts = dict(
        page.run(
            f"[...{card_of('Verdicts · one')}.querySelectorAll('.legend li')]"
            ".map((item) => [item.textContent, item.firstChild.style.background])"
        )
    )
    assert verdicts["pass rate"] == "var(--good)" and list(verdicts.values()).count("var(--good)") == 1


def test_each_run_has_its_own_medians(page: Page) -> None:
    said = page.run(
        "['one', 'two'].map((run) => [...document.querySelectorAll('.card')]"
        ".find((c) => c.querySelector('h3 span').textContent === `Seconds by part · ${run}`)"
        ".querySelector('.meaning').textContent.split('Medians: ')[1])"
    )
    assert said == ["transfer 20 ms, engine 0 ms, proof 10 ms.", "transfer 20 ms, engine 0 ms, proof 30 ms."]


def test_a_value_that_is_not_finite_is_a_gap(page: Page) -> None:
    card = card_of("KL")
    assert page.run(f"{card}.querySelector('path.line').getAttribute('d').split('M').length - 1") == 2


def test_the_pointer_and_the_arrow_keys_read_values(page: Page) -> None:
    page.point("#learning .card svg", 0.999)
    assert texts(page, "#learning .card .tip:not([hidden])") == ["step 20one · mean1one · pass rate1"]
    page.run("document.querySelector('#learning .card svg').focus()")
    page.press("Home", "ArrowRight")
    tip = texts(page, "#learning .card .tip:not([hidden])")
    assert tip == ["step 2one · mean0.1one · pass rate0.1two · mean0.1two · pass rate0.1"]
    page.press("Escape")
    assert texts(page, "#learning .card .tip:not([hidden])") == []


def test_smoothing_keeps_the_curve_itself_pale(page: Page) -> None:
    assert page.run("document.querySelectorAll('path.raw').length") == 0
    press_button(page, "0.9")
    raw, smooth = page.run(
        "['.raw', '.line:not(.raw)'].map((s) => document.querySelector(`#learning path${s}`).getAttribute('d'))"
    )
    assert raw != smooth and page.run("document.querySelectorAll('path.raw').length") > 10
    ys = [float(point.split(",")[1]) for point in smooth[1:].split("L")]
    assert ys == sorted(ys, reverse=True)  # a curve that rises still does


def test_the_copy_that_resharding_cannot_exceed_is_marked(page: Page) -> None:
    assert texts(page, "#resharding .marklabel") == ["a plain copy, 8 GB/s"]
    assert "Median 2 GB/s, 25 % of what the machine copies (one)." in texts(page, "#resharding .meaning")[0]


@pytest.mark.parametrize(("prefers", "expected"), [("light", LIGHT), ("dark", DARK)])
def test_the_theme_is_the_systems_until_one_is_chosen(
    chromium: Page, written: Path, prefers: str, expected: str
) -> None:
    chromium.open(written, theme=prefers)
    assert chromium.run(BACKGROUND) == expected
    for name, background in (("dark", DARK), ("light", LIGHT), ("auto", expected)):
        chromium.run(
            f"[...document.querySelectorAll('.controls button')].find((b) => b.textContent === '{name}').click()"
        )
        assert chromium.run(BACKGROUND) == background
        assert (
            chromium.run("document.querySelector('.controls div:last-child [aria-pressed=true]').textContent") == name
        )


@pytest.mark.parametrize("width", [320, 390, 768, 1920])
def test_no_width_scrolls_sideways(chromium: Page, written: Path, width: int) -> None:
    chromium.open(written, width=width)
    assert chromium.run("document.documentElement.scrollWidth") <= width
    assert chromium.run("[...document.querySelectorAll('.grid .card')].every((c) => c.clientWidth > 200)")


def test_filters_leave_what_they_name(page: Page) -> None:
    assert texts(page, ".count") == ["12 of 12"]
    choose(page, "Run", "one")
    choose(page, "Step", "20")
    assert texts(page, ".count") == ["4 of 12"]
    assert [text.startswith("✓sum-") for text in texts(page, ".list [role=option]")] == [True, True, True, False]
    choose(page, "Verdict", "wrong")
    assert texts(page, ".count") == ["1 of 12"]
    choose(page, "Verdict", "all")
    choose(page, "Reward from", "0.5")
    choose(page, "Problem", "SUM-2")
    assert [text[:8] for text in texts(page, ".list [role=option]")] == ["✓sum-2 #"]
    choose(page, "to", "0.7")
    assert texts(page, ".list [role=option]") == [] and "Nothing is left" in texts(page, ".detail")[0]


def test_the_list_is_walked_with_keys(page: Page) -> None:
    page.run("document.querySelector('.list').focus()")
    page.press("ArrowDown", "ArrowDown", "ArrowUp")
    assert texts(page, ".list [aria-selected=true] .who") == ["sum-1 #1"]
    assert "sum-1, sample 1, step 10, one" in texts(page, ".detail h3 small")
    page.press("End")
    assert page.run("document.querySelector('.list').getAttribute('aria-activedescendant')") == "completion-11"


def coloured(page: Page) -> list[bool]:
    """Return for each token whether it has a background colour."""
    shown: list[str] = page.run("[...document.querySelectorAll('.tokens span')].map((s) => s.style.background)")
    return [bool(each) for each in shown]


def colour_by_gap(page: Page) -> None:
    page.run(
        "(() => { const s = document.querySelector('.detail select'); s.value = 'gap';"
        " s.dispatchEvent(new Event('input')); })()"
    )


def test_settings_that_were_changed_on_the_way_are_a_table(page: Page) -> None:
    found = texts(page, "#settings .scroll:nth-of-type(2) td")
    assert found == ["one", "3", "run.timeout_s", "600.0", "1200.0", "two", "3", "run.timeout_s", "600.0", "1200.0"]


def test_tokens_are_coloured_by_what_is_chosen_and_read_out(page: Page) -> None:
    assert texts(page, ".tokens span") == ["It", " is ", "\\boxed", "{2}", "<eos>"]
    assert coloured(page) == [True, False, True, False, False]  # KL, where log rho is -1 and 0.5
    page.run("document.querySelector('.tokens').focus()")
    page.press("Home")
    # k3 of log rho = -1 is e^-1 - 1 + 1
    assert texts(page, ".readout") == [
        'token 1 "It"KL 0.3679log ρ -1trainer -0.75engine -0.5engine − trainer 0.25reference -1.75'
    ]
    page.press("ArrowRight", "ArrowRight")
    assert 'token 3 "\\\\boxed"KL 0.1487log ρ 0.5' in texts(page, ".readout")[0]
    colour_by_gap(page)
    assert coloured(page) == [True, False, False, False, False]


def test_tokens_of_earlier_weights_have_no_gap(page: Page) -> None:
    choose(page, "Verdict", "wrong")
    assert f"{len(HOSTILE)}, the first 2 from weights of earlier steps" in texts(page, ".facts dd")
    colour_by_gap(page)
    assert coloured(page) == [False, False] + [True] * (len(HOSTILE) - 2)


def test_what_models_write_is_shown_as_text_and_does_nothing(page: Page) -> None:
    choose(page, "Verdict", "wrong")
    assert page.run("window.hacked") is None and page.errors == []
    shown = texts(page, ".tokens span")
    assert shown[0] == HOSTILE[0] and shown[1] == HOSTILE[1] and shown[3] == HOSTILE[3]
    assert shown[4] == "␀␛[31m⟨U+7F⟩⟨U+2028⟩⟨U+2029⟩⟨U+202E⟩gnp.exe⟨U+2066⟩⟨U+FEFF⟩".replace("U+7F", "U+007F")
    assert shown[5] == "⟨U+D800⟩" and shown[6] == "a⏎\nb\tc␍"
    assert page.run("document.querySelectorAll('main img, main script, main b b').length") == 0
    assert texts(page, ".prompt")[0].startswith(HOSTILE[0] + HOSTILE[1])


def test_even_markup_would_run_nothing(page: Page) -> None:
    """The security policy of the page blocks scripts even if text were taken for markup."""
    page.run(
        "new Promise((done) => { document.body.insertAdjacentHTML('beforeend', "
        '\'<img src=x onerror="window.hacked = 4"><iframe srcdoc="<script>parent.hacked = 5</script>"></iframe>\');'
        " setTimeout(done, 300); })"
    )
    assert page.run("window.hacked") is None
    assert any("Content Security Policy" in error for error in page.errors)


def test_pictures_are_light_and_dark(chromium: Page, written: Path, tmp_path: Path) -> None:
    sizes = []
    for theme in ("light", "dark"):
        chromium.open(written, theme=theme)
        chromium.picture(tmp_path / f"{theme}.png")
        content = (tmp_path / f"{theme}.png").read_bytes()
        assert content.startswith(b"\x89PNG") and content[16:24] == (1280).to_bytes(4, "big") + (900).to_bytes(4, "big")
        sizes.append(content)
    assert sizes[0] != sizes[1] and min(map(len, sizes)) > 20_000
