"""The package's page on an index: the README, whose links an index cannot follow as they stand.

`repository` in pyproject.toml says where this folder can be read on the web. Then links are absolute and
the package names that address. As long as it is empty, links of the README become plain text: a broken
link helps nobody, and an address that is not ours could lead anywhere.
"""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(?<!\!)\[([^\]]+)\]\((?!https?:|#)([^)]+)\)")
IMAGE = re.compile(r'<img src="(?!https?:)([^"]+)"[^>]*>')


def for_index(text: str, repository: str) -> str:
    """The README with absolute links, or without links where no repository is named.

    Args:
        text: the README.
        repository: address of the repository's main page, without a slash at its end; may be empty.
    """
    if not repository:
        return IMAGE.sub("", LINK.sub(r"\1", text))
    text = LINK.sub(rf"[\1]({repository}/blob/main/\2)", text)
    return IMAGE.sub(lambda m: m[0].replace(m[1], f"{repository}/raw/main/{m[1]}"), text)


class ReadmeHook(MetadataHookInterface):
    """Fills in what pyproject.toml calls dynamic."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the description and the addresses of the package."""
        repository = str(self.config.get("repository", "")).rstrip("/")
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": for_index(text, repository),
        }
        metadata["urls"] = {"Paper": "https://arxiv.org/abs/2507.03004"}
        if repository:
            metadata["urls"] |= {
                "Repository": repository,
                "Documentation": f"{repository}/tree/main/docs",
                "Changelog": f"{repository}/blob/main/CHANGELOG.md",
                "Issues": f"{repository}/issues",
            }
