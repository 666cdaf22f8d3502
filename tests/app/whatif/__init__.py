"""Tests of the what-if app; all of them are skipped where its extra is not installed."""

import pytest

for name in ("streamlit", "plotly"):
    pytest.importorskip(name, reason="the what-if app needs the extra `app`")
