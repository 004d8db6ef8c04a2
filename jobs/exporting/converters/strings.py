"""Strings in a graph: rules, terms of text, means of the target by category."""

from __future__ import annotations

import numpy as np

from jobs.exporting.converters.nodes import Graph
from jobs.preparation.patterns import portable_pattern

#: The operator set that has RegexFullMatch; graphs without a rule stay at an older one.
RULES_OPSET = 20


def write_matching(graph: Graph) -> None:
    """Write ``jobs.preparation.columns.Matching``: what no rule lets pass becomes the empty string."""
    current = graph.input
    n_columns = len(graph.step.patterns)
    by_pattern: dict[str, list[int]] = {}
    for column, patterns in enumerate(graph.step.patterns):
        for pattern in patterns:
            by_pattern.setdefault(pattern, []).append(column)
    for pattern, asked in by_pattern.items():
        matches = graph.add("RegexFullMatch", current, version=RULES_OPSET, pattern=portable_pattern(pattern))
        free = ~np.isin(np.arange(n_columns), asked)
        fine = graph.add("Or", matches, free[None, :], version=7)
        current = graph.add("Where", fine, current, np.array([""], dtype=object), version=16)
    graph.add("Identity", current, output=graph.output, version=16)


def write_terms(graph: Graph) -> None:
    """Write ``jobs.preparation.columns.Terms``: words, counted, weighed, each row of length 1."""
    vectorizer = graph.step.vectorizer_
    terms = vectorizer.get_feature_names_out()
    order = sorted(range(len(terms)), key=lambda index: (terms[index].count(" "), index))
    pool: list[str] = []
    starts: dict[int, int] = {}
    for index in order:
        words = terms[index].split(" ")
        starts.setdefault(len(words), len(pool))
        pool.extend(words)
    longest = max(starts)
    counts = []
    for length in range(1, longest + 1):  # a length without a term starts where the next one does
        counts.append(min((start for words, start in starts.items() if words >= length)))
    flat = graph.add("Reshape", graph.input, np.array([-1]), version=14)
    # The locale "C" changes ASCII alone and is installed everywhere.
    lower = graph.add(
        "StringNormalizer", flat, version=10, case_change_action="LOWER", is_case_sensitive=0, locale="C"
    )
    words = graph.add(
        "Tokenizer",
        lower,
        domain="com.microsoft",
        pad_value="#",
        mark=0,
        mincharnum=1,
        tokenexp=vectorizer.token_pattern,
    )
    counted = graph.add(
        "TfIdfVectorizer",
        words,
        version=9,
        mode="TF",
        min_gram_length=min(starts),
        max_gram_length=longest,
        max_skip_count=0,
        ngram_counts=counts,
        ngram_indexes=order,
        pool_strings=pool,
    )
    weighed = graph.add("Mul", counted, vectorizer.idf_.astype(np.float32)[None, :], version=14)
    norm = graph.add("ReduceL2", weighed, np.array([1]), keepdims=1)
    norm = graph.add("Max", norm, np.array([1e-30], np.float32), version=13)  # of a text without a term
    graph.add("Div", weighed, norm, output=graph.output, version=14)


def write_target_means(graph: Graph) -> None:
    """Write ``jobs.preparation.columns.TargetMeans``: a mean per category, that of all rows for a new one."""
    step = graph.step
    n_classes = len(step.encodings_) // len(step.categories_)
    means = np.atleast_1d(step.target_mean_)
    parts = []
    for index, encodings in enumerate(step.encodings_):
        column = graph.add("Gather", graph.input, np.array([index // n_classes]), axis=1, version=13)
        parts.append(
            graph.add(
                "LabelEncoder",
                column,
                domain="ai.onnx.ml",
                version=2,
                keys_strings=[str(each) for each in step.categories_[index // n_classes]],
                values_floats=[float(each) for each in encodings],
                default_float=float(means[index % n_classes]),
            )
        )
    graph.add("Concat", *parts, output=graph.output, axis=1, version=13)
