"""Write the cross-validation report as a page for people."""

SPLITS = {
    "recordings kept together": "Overlapping windows of one recording in one fold",
    "trials split at random": "Trials split at random",
}


def to_markdown(report: dict) -> str:
    """Render the report."""
    data = report["data"]
    counts = ", ".join(f"{count} {name}" for name, count in data["classes"].items())
    lines = [
        "# Cross-validation",
        "",
        "Written by `train.py`; do not edit.",
        "",
        f"{data['trials']} trials in the files, {data['distinct']} distinct by signal "
        f"({counts}), from {data['recordings']} recordings. {report['procedure']}",
        "",
    ]
    for split, title in SPLITS.items():
        lines += [f"## {title}", ""]
        for problem, methods in report["splits"][split].items():
            lines += method_table(problem, methods)
    lines += ["## From task to task", ""]
    lines += [
        "Trained on the other tasks, tested on one the model never saw; accuracy in %, "
        "beside that of always answering the task's most frequent class.",
        "",
    ]
    lines += task_table(report["across_tasks"])
    lines += ["## The models as shipped, on the trials they were trained on", ""]
    lines += shipped_table(report["shipped"])
    return "\n".join(lines)


def method_table(problem: str, methods: dict) -> list[str]:
    """Render the methods for one problem."""
    labels = list(next(iter(methods.values()))["recall"])
    lines = [
        f"### {problem}",
        "",
        "| method | accuracy % | lowest to highest | "
        + " | ".join(f"{label} recalled %" for label in labels)
        + " |",
        "|" + "---|" * (3 + len(labels)),
    ]
    for name, result in methods.items():
        recall = " | ".join(f"{result['recall'][label]:.1f}" for label in labels)
        lines.append(
            f"| {name} | {result['accuracy']:.1f} "
            f"| {result['lowest']:.1f} to {result['highest']:.1f} | {recall} |"
        )
    return [*lines, ""]


def task_table(across_tasks: dict) -> list[str]:
    """Render the transfer between tasks."""
    tasks = list(next(iter(across_tasks.values())))
    lines = [
        "| problem, method | " + " | ".join(tasks) + " |",
        "|" + "---|" * (1 + len(tasks)),
    ]
    for name, result in across_tasks.items():
        row = " | ".join(f"{result[task]:.1f}" for task in tasks)
        lines.append(f"| {name} | {row} |")
    return [*lines, ""]


def shipped_table(shipped: dict) -> list[str]:
    """Render the shipped models."""
    lines = [
        "| model | levels | features | largest possible sum | penalty strength C "
        "| right of all | accuracy % |",
        "|" + "---|" * 7,
    ]
    for name, model in shipped.items():
        lines.append(
            f"| {name} | {model['levels']} | {model['features']} "
            f"| {model['largest_sum']} | {model['strength']} "
            f"| {model['right']} | {model['accuracy']:.1f} |"
        )
    return [*lines, ""]
