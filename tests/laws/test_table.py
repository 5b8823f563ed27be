"""Anyone's table is read, or refused in one sentence that names the row and the column."""

import numpy as np
import pytest
from synthetic import TRUTH, grid, true_loss

from deeplearn import laws

ROWS = ["1e3,1e5,3.0", "2e3,1e5,2.9", "1e3,2e5,2.8", "2e3,2e5,2.7", "4e3,2e5,2.6"]


def write(tmp_path, header, rows=ROWS):
    path = tmp_path / "runs.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


@pytest.mark.parametrize(
    "header", ["N,D,loss", "n_params,n_tokens,val_loss", "Params,Tokens,Loss", "parameters,d,eval_loss"]
)
def test_usual_names_are_found(tmp_path, header):
    table = laws.read_csv(write(tmp_path, header))
    np.testing.assert_array_equal(table.params, [1e3, 2e3, 1e3, 2e3, 4e3])
    np.testing.assert_array_equal(table.tokens, [1e5, 1e5, 2e5, 2e5, 2e5])
    np.testing.assert_array_equal(table.loss, [3.0, 2.9, 2.8, 2.7, 2.6])
    assert table.unit == "nats/token"


def test_tokens_come_from_flops(tmp_path):
    table = laws.read_csv(write(tmp_path, "N,training_flops,loss"))
    np.testing.assert_allclose(6 * table.params * table.tokens, [1e5, 1e5, 2e5, 2e5, 2e5], rtol=1e-15)


def test_columns_given_by_name_win_over_guesses(tmp_path):
    rows = [f"{row},{2 * index + 1},7,9" for index, row in enumerate(ROWS)]
    path = write(tmp_path, "N,D,loss,body,budget,score", rows)
    table = laws.read_csv(path, names={"params": "body", "flops": "budget", "loss": "D"})
    np.testing.assert_array_equal(table.params, [1, 3, 5, 7, 9])
    np.testing.assert_allclose(table.tokens, 7 / (6 * table.params))
    np.testing.assert_array_equal(table.loss, [1e5, 1e5, 2e5, 2e5, 2e5])


def test_runs_that_do_not_count_are_left_out_and_said(tmp_path):
    tails = ["done,fit", "diverged,fit", "done,fit", "done,held_out", "done,fit"]
    # A run that is not done may well have no loss.
    rows = [f"{row},bits/byte,{tail}" for row, tail in zip(ROWS, tails, strict=True)]
    rows[1] = "2e3,1e5,,bits/byte,diverged,fit"
    path = write(tmp_path, "params,tokens,loss,unit,status,split", rows)
    table = laws.read_csv(path)
    np.testing.assert_array_equal(table.loss, [3.0, 2.8, 2.6])
    assert table.unit == "bits/byte"
    assert table.notes == ("1 of 5 runs left out: status is not 'done'", "1 of 4 runs left out: split is not 'fit'")
    np.testing.assert_array_equal(laws.read_csv(path, split="held_out").loss, [2.7])
    np.testing.assert_array_equal(laws.read_csv(path, split=None).loss, [3.0, 2.8, 2.7, 2.6])


def test_without_a_split_column_nothing_is_held_out(tmp_path):
    assert len(laws.read_csv(write(tmp_path, "N,D,loss"), split="held_out")) == 0


@pytest.mark.parametrize(
    ("header", "change", "options", "sentence"),
    [
        ("N,D,score", None, {}, "no column for loss: the file has N, D, score"),
        ("N,steps,loss", None, {}, "no column for tokens"),
        ("N,D,loss", None, {"names": {"loss": "los"}}, "no column 'los' for loss; did you mean 'loss'?"),
        ("N,D,loss", None, {"names": {"params": "zzz"}}, "no column 'zzz' for params; the file has N, D, loss"),
        ("N,D,loss", "1e3,2e5,nan", {}, "line 4, column 'loss': nan is not a positive finite number"),
        ("N,D,loss", "1e3,2e5,inf", {}, "line 4, column 'loss': inf is not a positive finite number"),
        ("N,D,loss", "0,2e5,2.8", {}, "line 4, column 'N': 0 is not a positive finite number"),
        ("N,D,loss", "1e3,-2e5,2.8", {}, "line 4, column 'D': -200000 is not a positive finite number"),
        ("N,D,loss", "1e3,2e5,2.8x", {}, "line 4, column 'loss': '2.8x' is not a number"),
        ("N,D,loss", "1e3,,2.8", {}, "line 4, column 'D': '' is not a number"),
        ("N,D,loss", "1e3,2e5", {}, "line 4, column 'loss': the line ends before it"),
        ("N,D,loss", "2e3,1e5,2.9", {}, "line 4 repeats line 3: columns 'N', 'D', 'loss' are all equal"),
        ("N,D,loss,unit", "1e3,2e5,2.8,bits", {}, "column 'unit' mixes bits, nats: a law needs one unit"),
    ],
)
def test_bad_tables(tmp_path, header, change, options, sentence):
    rows = [row + ",nats" if "unit" in header else row for row in ROWS]
    if change is not None:
        rows[2] = change
    with pytest.raises(laws.TableError) as error:
        laws.read_csv(write(tmp_path, header, rows), **options)
    assert str(error.value).startswith(sentence)
    assert "\n" not in str(error.value)


def test_lines_are_counted_in_the_file(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text('N,D,loss,note\n1e3,1e5,3.0,"two\nlines"\n2e3,1e5,0,\n')
    with pytest.raises(laws.TableError, match="line 4, column 'loss'"):
        laws.read_csv(path)


@pytest.mark.parametrize("content", [b"", b"N,D,loss\n\xff\xfe,1,1\n"])
def test_files_that_are_no_tables(tmp_path, content):
    path = tmp_path / "runs.csv"
    path.write_bytes(content)
    with pytest.raises(laws.TableError, match=r"runs\.csv"):
        laws.read_csv(path)
    with pytest.raises(laws.TableError, match=r"cannot read .*other\.csv.*No such file"):
        laws.read_csv(tmp_path / "other.csv")


def test_arrays_are_checked_like_files():
    good = np.array([1.0, 2.0])
    with pytest.raises(laws.TableError, match="row 1, column 'tokens'"):
        laws.runs(good, np.array([1.0, -1.0]), good)
    with pytest.raises(laws.TableError, match="row 1 repeats row 0"):
        laws.runs(np.ones(2), np.ones(2), np.ones(2))
    with pytest.raises(laws.TableError, match="columns differ in length: params 2, tokens 1, loss 2"):
        laws.runs(good, good[:1], good)
    with pytest.raises(laws.TableError, match="column 'loss' has 2 dimensions"):
        laws.runs(good, good, good[None])
    with pytest.raises(laws.TableError, match="column 'params' is not a 1-d array of numbers"):
        laws.runs(["a", "b"], good, good)


def test_a_table_is_frozen_and_its_own():
    params = np.array([1.0, 2.0])
    table = laws.runs(params, params, params)
    params[0] = 5.0
    assert table.params[0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        table.loss[0] = 3.0


def test_too_few_runs(tmp_path):
    table = laws.read_csv(write(tmp_path, "N,D,loss", ROWS[:4]))
    with pytest.raises(laws.TableError, match="4 runs cannot determine the 5 parameters of the chinchilla law"):
        laws.fit(table)


def test_counts_beside_the_wanted_columns_are_read_where_they_are(tmp_path):
    rows = [f"{row},{100 * index + 7}" for index, row in enumerate(ROWS)]
    path = write(tmp_path, "N,D,loss,flops", rows)
    table = laws.read_csv(path, also=("flops", "params_no_embed"))
    np.testing.assert_array_equal(table.flops, [7, 107, 207, 307, 407])
    np.testing.assert_array_equal(table.tokens, [1e5, 1e5, 2e5, 2e5, 2e5])
    assert set(laws.read_csv(path).columns) == {"params", "tokens", "loss"}


def test_ten_runs_are_fitted_with_what_they_cannot_say():
    fit = laws.fit(grid(5, 2), replicates=100)
    assert fit.n_runs == 10
    assert any(warning.startswith("not identified: B and beta") for warning in fit.warnings)


@pytest.mark.slow
def test_a_hundred_thousand_runs_are_fitted():
    rng = np.random.default_rng(0)
    params, tokens = np.exp(rng.uniform(np.log(3e3), np.log(3e5), 100_000)), np.exp(rng.uniform(11, 14, 100_000))
    table = laws.runs(params, tokens, true_loss(params, tokens) * np.exp(0.004 * rng.standard_normal(100_000)))
    fit = laws.fit(table, starts=32, replicates=20)
    for name, value in TRUTH.items():
        np.testing.assert_allclose(fit.params[name].value, value, rtol=0.01)
    assert fit.certificate.converged
    assert fit.warnings == ()
