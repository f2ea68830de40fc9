"""What the site has beyond docs/: an API page for each group of names, a list of the decisions, files that pages name.

The pages are written for a reader of the files: they link to tests and examples, and to folders. Here these links get
a page to lead to, so that the same page is right in both places. Nothing is written but the site.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import poolkit
import poolkit.testing

HERE = Path(__file__).resolve().parent
LINK = re.compile(r"(?:\[`(?P<name>\w+)`)?\]\((?P<path>\.\./[^)#\s]+)\)")  # that lead up, perhaps out of docs/
PICTURE = re.compile(r"^(!\[[^\]]*\]\(([^)\s]+\.svg)\))$", re.MULTILINE)
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)
ELSEWHERE = re.compile(r"""<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//""")
LONG_NAME = re.compile(r"(?<=<code>)\w{16,}(?=</code>)")
BEHIND = "---\nsearch:\n  boost: 0.5\n---"  # what the reference and the guides say comes first
GROUPS = {
    "Pools": ["Pool", "PoolView", "Results", "usable_cpus"],
    "Tasks": ["Task", "TaskContext", "current_task", "Progress", "progress", "Messages"],
    "Functions": ["offload", "Offloaded", "OffloadedStream", "use_pool", "default_pool", "set_default_pool"],
    "Streams": ["Stream"],
    "Commands": ["run", "spawn", "Command", "CompletedCommand", "Lines", "Chunks"],
    "Dedicated workers": ["Worker", "Port", "current_port"],
    "Clusters": ["Cluster", "ClusterContext", "ClusterStats", "ClusterWorkerInfo", "application"],
    "Shared memory": ["Shared", "SharedBuffer", "SharedArray"],
    "Watching": ["PoolStats", "HistogramSnapshot", "WorkerInfo", "Trace"],
    "Events": ["WorkerStarted", "WorkerExited", "TaskStarted", "TaskDone", "TaskRetried"],
    "Errors": ["PoolkitError"],  # and all others, see `on_config`
    "Testing": [f"testing.{name}" for name in poolkit.testing.__all__],
    "Dask": ["dask.DaskPool", "dask.NodeInfo", "dask.NodeJoined", "dask.NodeLeft", "dask.install"],
    "Extras": ["extras.joblib.register", "extras.prometheus.Collector"],
}


def on_config(config: MkDocsConfig) -> None:
    """Give each name its page: the errors are one group, and whatever was forgotten is a mistake.

    Of classes those members are shown that the reference names; others without an underscore are internal, too.
    """
    errors = [name for name in poolkit.__all__ if _is_error(getattr(poolkit, name)) and name != "PoolkitError"]
    GROUPS["Errors"] = ["PoolkitError", *errors]
    if lost := set(poolkit.__all__) - {name for names in GROUPS.values() for name in names}:
        raise PluginError(f"without a group in {__file__}: {', '.join(sorted(lost))}")
    promised = "|".join(sorted(set(re.findall(r"\b[a-z]\w+", "\n".join(CODE.findall(_reference()))))))
    options = config.plugins["mkdocstrings"].config.handlers["python"]["options"]
    options["filters"] = [f"!^(?!({promised})$)[a-z_]"]


def _reference() -> str:
    return (HERE.parent / "docs/reference.md").read_text(encoding="utf-8")


def _is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, poolkit.PoolkitError)


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add what docs/ lacks, and let the navigation name it."""
    pages = [file for file in files if file.is_documentation_page()]
    for title, names in GROUPS.items():
        words = [BEHIND, f"# {title}", *(f"::: poolkit.{name}" for name in names)]
        files.append(_made(config, f"api/{_slug(title)}.md", "\n\n".join(words)))
    notes = sorted((file for file in pages if file.src_uri.startswith("decisions/")), key=lambda note: note.src_uri)
    titles = [note.content_string.partition("\n")[0].removeprefix("# ") for note in notes]
    entries = [f"* [{title}]({PurePosixPath(note.src_uri).name})" for title, note in zip(titles, notes, strict=True)]
    files.append(_made(config, "decisions/index.md", "\n".join(["# Decisions", "", *entries])))
    for path in sorted({path for page in pages for path in _outside(page)}):
        files.append(_made(config, f"source/{path}.md", _shown(path)))
    files.append(File.generated(config, "site.css", content=(HERE / "mkdocs.css").read_text(encoding="utf-8")))
    named = set(_named(config.nav))
    config.nav = _expanded(config.nav, [file.src_uri for file in files.documentation_pages()], named)


def _made(config: MkDocsConfig, path: str, text: str) -> File:
    return File.generated(config, path, content=text + "\n")


def _slug(title: str) -> str:
    return title.lower().replace(" ", "-")


def _outside(page: File) -> Iterator[str]:
    """The files of the project that a page links to and that are not in docs/."""
    for found in LINK.finditer(page.content_string):
        path = normpath(f"docs/{PurePosixPath(page.src_uri).parent}/{found['path']}")
        if not path.startswith("docs/"):
            yield path


def _shown(path: str) -> str:
    """A page with a file of the project, under a heading for each test."""
    text = (HERE.parent / path).read_text(encoding="utf-8")
    starts = [(1, "")]
    if path.endswith(".py"):
        tests = [each for each in ast.parse(text).body if getattr(each, "name", "").startswith("test_")]
        starts += [(min([each.lineno, *(mark.lineno for mark in each.decorator_list)]), each.name) for each in tests]
    lines = text.splitlines()
    parts = [f"---\nsearch:\n  exclude: true\n---\n\n# {path}"]
    for (start, name), end in zip(starts, [*(start for start, _ in starts[1:]), len(lines) + 1], strict=True):
        code = "\n".join(lines[start - 1 : end - 1]).rstrip()
        heading = f"## `{name}`\n\n" if name else ""
        parts.append(f'{heading}`````` {{ .{_language(path)} linenums="{start}" }}\n{code}\n``````')
    return "\n\n".join(parts)


def _language(path: str) -> str:
    return {".py": "python", ".md": "markdown", ".toml": "toml"}.get(PurePosixPath(path).suffix, "text")


def _named(entries: object) -> Iterator[str]:
    for entry in entries if isinstance(entries, list) else [entries]:
        if isinstance(entry, dict):
            for value in entry.values():
                yield from _named(value)
        else:
            yield str(entry)


def _expanded(entries: Any, pages: list[str], named: set[str]) -> Any:
    """The navigation, with the pages of a folder that nothing else names in the place of its `*`."""
    if not isinstance(entries, list):
        return entries
    result: list[object] = []
    for entry in entries:
        if isinstance(entry, dict):
            result.append({title: _expanded(inner, pages, named) for title, inner in entry.items()})
        elif str(entry).endswith("*"):
            folder = PurePosixPath(str(entry)).parent
            result += sorted(
                (page for page in pages if PurePosixPath(page).parent == folder and page not in named),
                key=lambda page: not page.endswith("/index.md"),
            )
        else:
            result.append(entry)
    return result


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Lead the links to what is not in docs/ to the pages made above; a picture leads to itself, in full size."""
    here = PurePosixPath(page.file.src_uri).parent

    def led(found: re.Match[str]) -> str:
        path = normpath(f"docs/{here}/{found['path']}")
        if path.startswith("docs/"):
            return found[0]
        target = relpath(f"source/{path}.md", str(here))
        anchor = f"#{found['name']}" if found["name"] else ""
        return found[0].replace(f"({found['path']})", f"({target}{anchor})")

    markdown = LINK.sub(led, markdown)
    markdown = markdown.replace("](decisions/)", "](decisions/index.md)")
    return PICTURE.sub(r"[\1](\2){ .picture }", markdown)


def on_page_content(html: str, **_: object) -> str:
    """Let long names of tests be broken where a reader would, so that tables are not too wide."""
    return LONG_NAME.sub(lambda name: name[0].replace("_", "_<wbr>"), html)


def on_post_page(output: str, page: Page, **_: object) -> str:
    """Refuse a page that would load something from elsewhere."""
    if found := ELSEWHERE.search(output):
        raise PluginError(f"{page.file.src_uri} loads something from elsewhere: {found[0]}")
    return output
