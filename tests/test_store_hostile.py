"""llava_lens.store: results in which a stranger put links."""

import pytest

from llava_lens import store
from tests.hostile import save_results


@pytest.mark.parametrize("linked", ["run.pkl", "parts", "images", "parts/0.pkl", "images/00a.pkl"])
def test_links_in_results_are_refused_when_read(tmp_path, linked):
    results = store.Results(save_results(tmp_path / "results", ["a", "b"]))
    (tmp_path / "linked").symlink_to(results.folder)  # to the whole folder a user may link
    assert len(list(store.Results.find(tmp_path / "linked").records())) == 2
    (results.folder / linked).rename(tmp_path / "elsewhere")
    (results.folder / linked).symlink_to(tmp_path / "elsewhere")
    for call in (
        lambda: list(store.Results(results.folder).records()),
        lambda: store.Results(tmp_path / "new").continue_from(results.folder),
    ):
        with pytest.raises(ValueError, match="is a link"):
            call()
