from megatron_rapo.data.visible import visible


def test_what_steers_a_terminal_or_hides_text_is_spelt_out():
    assert visible("a\x1b[2J\x9b0m\x07\x00\u202e\u2028é½😀\\x1b") == (
        "a<U+001B>[2J<U+009B>0m<U+0007><U+0000><U+202E><U+2028>é½😀\\x1b"
    )
    assert visible("\ud800 a\nb\tc", keep="\n") == "<U+D800> a\nb<U+0009>c"
