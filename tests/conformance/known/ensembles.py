"""The known differences of ensembles. Pure data."""

from __future__ import annotations

from tests.conformance.difference import Difference, Verdict, known

DIFFERENCES: tuple[Difference, ...] = (
    known(
        Verdict.DELIBERATE,
        "a configuration that contradicts itself is the client's fault: 400 or INVALID_ARGUMENT, not 500 or INTERNAL",
        "status",
        "ensembles/http/e_twice",
        "ensembles/http/e_unwritten",
        "ensembles/http/e_unused_input",
        "ensembles/http/e_unused_tensor",
        "ensembles/http/e_circle",
        "ensembles/http/e_no_step",
        "ensembles/http/e_instances",
    ),
    known(
        Verdict.DELIBERATE,
        "outputs can be asked for alone though other steps take them too, and though inputs of other steps are left out; this "
        "release of Triton ends in a deadlock, which it reports",
        "status",
        "ensembles/http/inner-*",
        "ensembles/http/optional-not-needed",
    ),
    known(
        Verdict.DELIBERATE,
        "outputs have the order of the configuration; Triton's is that of a hash table",
        "body",
        "ensembles/http/e_fork",
        "ensembles/grpc/e_fork",
        "ensembles/http/binary",
        "ensembles/http/parameters",
        "ensembles/http/optional-given",
    ),
    known(
        Verdict.WORDS,
        "begins with the request's id, as other refusals do",
        "text",
        "ensembles/http/unknown-input",
        "ensembles/http/unknown-output",
        fragment="unexpected inference",
    ),
)
