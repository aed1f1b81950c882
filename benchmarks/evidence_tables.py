"""Tables about claims: who is believed, which files are opened, whether verdicts err as seldom as they say."""

import numpy as np

from benchmarks.cells import Result, calibration_cells, circumstances
from scripts.markdown import markdown_table


def verdicts_table(results: dict[str, Result]) -> str:
    """One row a way to read, a test and a level."""
    result = results["verdict_calibration"]
    rows = [
        [row["ways"], row["num_keys"], row["factor"], row["test"], *calibration_cells(row)] for row in result["rows"]
    ]
    header = [
        "how suspects are read",
        "keys",
        "correction",
        "test",
        "nominal",
        "attained",
        "observed",
        "99.9 % interval",
        "as promised",
    ]
    return markdown_table(header, rows) + "\n\n" + circumstances(result)


def claims_table(results: dict[str, Result]) -> str:
    """One row a claimant."""
    result = results["false_claims"]
    rows = [
        [
            row["claimant"],
            f"{row['log10_p_undefended']:.1f}",
            "**accepted**" if row["accepted"] else "refused",
            row["reason"],
            {True: "believed", False: "**not believed**", None: "no owner"}[row["owner_accepted"]],
        ]
        for row in result["rows"]
    ]
    header = ["claimant", "log10 p without the defences", "judge", "because", "the owner, beside them"]
    return markdown_table(header, rows) + "\n\n" + circumstances(result)


def suspects_table(results: dict[str, Result]) -> str:
    """One row a kind of file, and the times of one verification."""
    result = results["suspects"]
    rows = []
    for kind in ("malicious", "honest"):
        files = [row for row in result["rows"] if row["kind"] == kind]
        seconds = [row["seconds"] for row in files]
        rows.append(
            [
                kind,
                len(files),
                sum(row["opened"] for row in files),
                sum(row["acted"] for row in files) if kind == "malicious" else "",
                f"{np.median(seconds):.1f}, {max(seconds):.1f}",
                f"{max(row['peak_memory_gib'] for row in files):.2f}",
            ]
        )
    isolations = " or ".join(sorted({row["isolation"] for row in result["rows"] if row["opened"]}))
    took = result["verification"]
    header = [
        "files",
        "number",
        "opened",
        "touched a canary",
        "seconds a file, median and longest",
        "most memory of a process, GiB",
    ]
    sentence = (
        f"The processes ran {isolations}. A whole verification of a file of WRN-16-2 took {took['isolated_s']:.1f} s, the start of "
        f"TensorFlow included; one pass over the key inputs in the verifier's own process {took['one_pass_s']:.1f} s."
    )
    return f"{markdown_table(header, rows)}\n\n{sentence}\n\n{circumstances(result)}"
