"""What pvc doctor says of a node's directories."""

from __future__ import annotations

import os
from pathlib import Path

from pvc.ops.nodecheck import check_image_cache


def test_a_directory_for_copies_of_images_is_roots(tmp_path: Path) -> None:
    (found,) = check_image_cache(tmp_path / "not" / "there")
    assert (found.verdict.value, found.check) == ("ok", "image-cache-dir")
    assert "MiB are free for copies of images" in found.text
    tmp_path.chmod(0o777)
    (found,) = check_image_cache(tmp_path)
    assert found.verdict.value == "fail"
    assert (found.fix or "").endswith(f"chmod 755 {tmp_path}")
    tmp_path.chmod(0o755)
    (found,) = check_image_cache(tmp_path)
    assert found.verdict.value == ("fail" if os.geteuid() else "ok")  # it belongs to whoever runs this
