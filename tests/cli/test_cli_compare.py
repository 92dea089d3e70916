import json
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from omnimix.cli import main

SMALL = ["--epochs", "2", "--net", "mlp:hidden=4", "--jobs", "1"]


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """(exit status, standard output, standard error) of a command line, run in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["omnimix", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr("omnimix.compare.report._plots", lambda result: [])
    monkeypatch.setattr("omnimix.compare.report.plots.picture", lambda result, path: None)


@pytest.fixture
def table(tmp_path):
    lines = ["size,kind,price", *(f"{i % 17},{'ab'[i % 2]},{3.5 * (i % 17) + i % 2}" for i in range(80))]
    path = tmp_path / "mine.csv"
    path.write_text("\n".join(lines))
    return path


def test_json_is_one_object_on_stdout_and_nothing_else(call, table):
    code, out, err = call(
        "compare", "--data", table, "--target", "price", "--methods", "erm,mixup:alpha=0.50", "--seeds", "2",
        "--json", *SMALL,
    )  # fmt: skip
    assert code == 0, err
    told = json.loads(out)
    assert out.count("\n") == 1
    assert told["data"] == str(table)
    assert [(r["method"], r["seed"]) for r in told["rows"]] == [
        ("erm", 0), ("erm", 1), ("mixup:alpha=0.5", 0), ("mixup:alpha=0.5", 1),
    ]  # fmt: skip
    assert os.path.exists(told["report"])
    assert told["store"] == os.path.join("omnimix-out", "mine", "store.db")
    assert "[4/4] mixup:alpha=0.5, seed 1: rmse" in err
    assert "s left" in err
    assert "mixup:alpha=0.5 " in err
    assert "regression: the target 'price' has" in err


def test_the_table_goes_to_stdout_and_quiet_is_quiet(call, table):
    arguments = ["compare", "--data", table, "--target", "price", "--methods", "mixup,c-mixup", "--seeds", "3,5"]
    code, out, _ = call(*arguments, "--baseline", "c-mixup", "--out", "here", *SMALL)
    assert code == 0
    assert "minus c-mixup" in out
    assert "test rmse over 2 seeds" in out
    assert "Report: here/report.html" in out
    assert "\x1b" not in out
    code, out, err = call(*arguments, "--out", "here", "--quiet", *SMALL)
    assert (code, out, err) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "airfol"], "did you mean 'airfoil'"),
        (["--data", "airfoil", "--methods", "erm,mixpu"], "there is no method 'mixpu'; did you mean 'mixup'"),
        (["--data", "airfoil", "--methods", "mixup:alpa=2"], "did you mean 'alpha'"),
        (["--data", "airfoil", "--methods", "mixup,mixup"], "listed twice"),
        (["--data", "airfoil", "--methods", "mixup", "--baseline", "erm"], "not among the methods"),
        (["--data", "airfoil", "--seeds", "none"], "seeds must be"),
        (["--data", "airfoil", "--epochs", "0"], "epochs must be greater than or equal to 1, got 0"),
        (["--data", "airfoil", "--label-noise", "2"], "label_noise must be less than or equal to 1, got 2"),
        (["--data", "airfoil", "--label-noise", "0.1"], "label noise replaces class labels"),
        (["--data", "airfoil", "--protocol", "cmixup"], "no protocol 'cmixup'"),
        (["--data", "digits", "--protocol", "c-mixup"], "data sets airfoil, no2"),
        (["--data", "airfoil", "--net", "rnn"], "no network 'rnn'"),
        (["--data", "airfoil", "--jobs", "0"], "jobs must be"),
        (["--data", "digits", "--batch", "401"], "more than the 400 training rows"),
        (["--data", "airfoil", "--target", "x"], "no meaning for built-in"),
        (["--data", "airfoil", "--tune", "-1"], "tune must be"),
        (["--data", "airfoil", "--selection", "oracle"], "selects by validation, last; got selection = 'oracle'"),
        (["--data", "airfoil", "--protocol", "domains"], "say which column holds them (--domain)"),
        (["--data", "airfoil", "--evaluations", "9", "--epochs", "2"], "leave out epochs"),
        (["--data", "airfoil", "--evaluations", "9"], "evaluations = 9 do not last for an epoch of erm"),
        (["--data", "airfoil", "--methods", "mixup@pairs"], "does not select partners"),
        (["--data", "mine.csv"], "--target"),
        (["--data", "mine.csv", "--target", "prize"], "did you mean 'price'"),
    ],
)
def test_mistakes_are_one_message_and_status_2(call, table, arguments, message):
    code, out, err = call("compare", *arguments, "--json")
    assert code == 2
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    assert not os.path.exists("omnimix-out") or not any(
        f.endswith("report.html") for _, _, files in os.walk("omnimix-out") for f in files
    )


def test_a_failed_run_is_status_1_with_the_others_in_the_table(call, table, monkeypatch):
    import omnimix.compare.jobs as jobs

    really = jobs._given

    def failing(job, plan):
        if job.method.name == "mixup":
            raise RuntimeError("out of luck")
        return really(job, plan)

    monkeypatch.setattr(jobs, "_given", failing)
    code, out, err = call("compare", "--data", table, "--target", "price", "--methods", "erm,mixup", "--json", *SMALL)
    assert code == 1
    assert [row["status"] for row in json.loads(out)["rows"]] == ["ok"] * 5 + ["failed"] * 5
    assert "failed: mixup, seed 0: RuntimeError: out of luck" in err
    assert "no run ended well" in err


def start(folder, *more):
    arguments = [
        "compare", "--data", "digits", "--methods", "erm,mixup:alpha=2", "--seeds", "3", "--epochs", "12",
        "--jobs", "1", "--out", str(folder), "--json", *more,
    ]  # fmt: skip
    command = [sys.executable, "-c", "from omnimix.cli import main; main()", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_at_any_moment_it_continues_and_gives_the_same(tmp_path):
    killed = start(tmp_path)
    for line in killed.stderr:
        if line.startswith("[2/6]"):
            time.sleep(0.05)
            os.kill(killed.pid, signal.SIGKILL)
            break
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    with sqlite3.connect(tmp_path / "store.db") as store:
        before = set(store.execute("SELECT key, finished FROM runs"))
    assert 2 <= len(before) < 6
    resumed = start(tmp_path)
    out, err = resumed.communicate()
    assert resumed.returncode == 0, err
    assert f"{len(before)} of 6 runs are in the store already" in err
    with sqlite3.connect(tmp_path / "store.db") as store:
        after = set(store.execute("SELECT key, finished FROM runs"))
    assert before < after
    assert len(after) == 6

    from omnimix.compare import compare, settings

    asked = settings(data="digits", methods=("erm", "mixup:alpha=2"), seeds=(0, 1, 2), epochs=12)
    undisturbed = compare(asked, tmp_path / "other", workers=1)
    assert [row["metrics"] for row in json.loads(out)["rows"]] == [run.metrics for run in undisturbed.runs]


def test_a_file_whose_name_looks_like_markup_is_named_as_it_is(call, table):
    odd = table.with_name("[red]$x$ :smile: [b].csv")
    table.rename(odd)
    code, out, err = call(
        "compare", "--data", odd, "--target", "price", "--methods", "erm", "--seeds", "1", *SMALL
    )  # fmt: skip
    assert code == 0, err
    assert "[red]$x$ :smile: [b]: test rmse" in out


def test_the_command_is_a_module_too():
    done = subprocess.run([sys.executable, "-m", "omnimix.cli", "--version"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("omnimix ")


@pytest.mark.parametrize("after", [0.1, 3.0])
def test_an_interrupt_at_the_start_ends_in_one_line(tmp_path, after):
    code = "from omnimix_command import main; print('here', flush=True); main()"
    command = [sys.executable, "-c", code, "compare", "--data", "airfoil", "--out", str(tmp_path), "--jobs", "1", "-q"]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started.stdout.readline()
    time.sleep(after)
    started.send_signal(signal.SIGINT)
    out, err = started.communicate()
    assert started.returncode == 130, err
    assert out == ""
    assert err.startswith("omnimix: stopped")
    assert err.count("\n") == 1


def test_tuning_and_held_out_domains_from_the_command_line(call, table):
    arguments = [
        "compare", "--data", table, "--target", "price", "--domain", "kind", "--protocol", "domains", "--methods",
        "erm,c-mixup", "--controls", "--tune", "2", "--seeds", "1", "--json", *SMALL,
    ]  # fmt: skip
    code, out, err = call(*arguments)
    assert code == 0, err
    told = json.loads(out)
    assert [s["method"] for s in told["summary"]] == ["erm", "c-mixup", "c-mixup@pairs", "c-mixup@resampling"]
    assert [row["domain"] for row in told["rows"][:3]] == [None, "a", "b"]
    assert len(told["tuning"]) == 4 * 2
    assert "[1/16] " in err
    assert "erm, seed 0, draw 1, without a: validation rmse" in err
    assert "test rmse, mean over held-out domains, selection by training-domain, over 1 seed" in err
    assert "test rmse by held-out domain" in err
    assert "NAME@pairs trains on the samples that NAME pairs" in " ".join(err.split())


def test_the_help_has_panels(call):
    _, out, _ = call("compare", "--help")
    for panel in ("Data", "Rows of the table", "Training", "Tuning and selection", "Running"):
        assert f" {panel} " in out


def test_runs_are_logged_and_trained_one_by_one_on_demand(call, tmp_path):
    pytest.importorskip("lightning")
    (tmp_path / "mine.csv").write_text(
        "a,b,y\n" + "".join(f"{i % 7},{i % 5},{i % 7 + i % 5 + i / 100}\n" for i in range(60))
    )
    options = ["compare", "--data", "mine.csv", "--target", "y", "--methods", "erm,mixup", "--seeds", "2", *SMALL]
    status, _, said = call(*options, "--out", "o", "--log", "csv:logs", "--apart")
    assert status == 0, said
    assert len(list((tmp_path / "logs").glob("*/metrics.csv"))) == 4
    rows = sqlite3.connect(tmp_path / "o" / "store.db").execute("SELECT versions FROM runs").fetchall()
    assert len(rows) == 4
    assert not any("together" in json.loads(row[0]) for row in rows)
    status, _, said = call(*options, "--log", "paper:x")
    assert status == 2
    assert "tensorboard:FOLDER, mlflow:URI or csv:FOLDER" in " ".join(said.split())
