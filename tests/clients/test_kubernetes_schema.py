"""The examples for Kubernetes fit its schemas."""

import pytest
import yaml

from tests.support.relay_process import ROOT
from tests.support.tables import each_row

kubernetes = pytest.importorskip("kubernetes_validate")


@each_row("name", ["kubernetes.yaml", "kubernetes-cloud.yaml"])
def test_each_object_fits_the_schema(name: str) -> None:
    """Of the first version that has sidecars, and of the newest."""
    for item in yaml.safe_load_all((ROOT / "docs/examples" / name).read_text()):
        for version in ("1.29", kubernetes.latest_version()):
            kubernetes.validate(item, version, strict=True)
