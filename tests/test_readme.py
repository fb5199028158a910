from tests.readme import README, example, shown


def test_the_example_runs_and_prints_the_layers_that_the_readme_shows(capsys):
    text = README.read_text()
    exec(compile(example(text), "README.md", "exec"), {})
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    layers = [line.rstrip() for line in shown(text).splitlines() if line.lstrip().startswith("(")]
    assert layers
    assert set(layers) <= set(printed)
