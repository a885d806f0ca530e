"""Files of interactions: delimiters, gzip, headers, weights, and names in a store."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import scipy.sparse

import sparse_embed as se
from sparse_embed.errors import ArgumentError, NotAStoreError
from sparse_embed.recommend.interactions_file import load_names, read_interactions, save_names


def write(folder, text: str, name: str = "taken.csv"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|", " "])
def test_delimiters(tmp_path, delimiter):
    path = write(tmp_path, "ann,tea\nbob,wine\nann,wine\n".replace(",", delimiter))
    data = read_interactions(path)
    assert list(data.users) == ["ann", "bob"]
    assert list(data.items) == ["tea", "wine"]
    np.testing.assert_array_equal(data.user_items.toarray(), [[1, 1], [0, 1]])


def test_weights_timestamps_quotes_and_duplicates(tmp_path):
    path = write(
        tmp_path,
        'user,item,weight,timestamp\r\nann,"a, b",2,100\r\nann,c,0,101\r\nann,"a, b",1,5\r\n\r\n',
    )
    data = read_interactions(path)
    assert data.items == {"a, b": 0}  # a weight of 0 is no interaction
    np.testing.assert_array_equal(data.user_items.toarray(), [[3]])


def test_header(tmp_path):
    for text, users in [
        ("user_id,item_id\n1,2\n", ["1"]),
        ("a,b,weight\n1,2,3\n", ["1"]),
        ("ann,tea\n1,2\n", ["ann", "1"]),
    ]:
        assert list(read_interactions(write(tmp_path, text)).users) == users
    path = write(tmp_path, "ann,tea\n1,2\n")
    assert list(read_interactions(path, header=True).users) == ["1"]
    path = write(tmp_path, "user,item\n1,2\n")
    assert list(read_interactions(path, header=False).users) == ["user", "1"]


def test_gzip_by_content_and_unicode(tmp_path):
    path = tmp_path / "taken.dat"
    path.write_bytes(gzip.compress("jürgen,寿司\n".encode()))
    data = read_interactions(path)
    assert data.users == {"jürgen": 0}
    assert data.items == {"寿司": 0}


def test_progress_ends_at_one(tmp_path):
    seen = []
    path = write(tmp_path, "".join(f"{k % 50},{k}\n" for k in range(40_000)))
    read_interactions(path, progress=seen.append)
    assert len(seen) == 3
    assert sorted(seen) == seen
    assert seen[-1] == 1.0


def test_names_travel_in_the_store(tmp_path):
    data = read_interactions(write(tmp_path, "ann,tea\njürgen,寿司\nann,寿司\n"))
    taken = scipy.sparse.csr_array(data.user_items)
    with se.Store.create(tmp_path / "model") as store:
        save_names(store, data, taken)
    with se.Store.open(tmp_path / "model", mode="r") as store:
        found = load_names(store)
    assert found.users == data.users
    assert found.items == data.items
    np.testing.assert_array_equal(found.user_items.toarray(), taken.toarray())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "line 1"),
        (b"alone\n", "line 1: expected user and item"),
        (b"ann,tea\nbob\n", "line 2: expected user and item"),
        (b"ann,tea\n,tea\n", "line 2: expected user and item"),
        (b"ann,tea,1\nbob,tea,much\n", "line 2: expected a weight"),
        (b"ann,tea,1\nbob,tea,-1\n", "line 2: expected a weight"),
        (b"ann,tea,1\nbob,tea,nan\n", "line 2: expected a weight"),
        (b"ann,tea,0\n", "no interactions"),
        (b"ann,t\xff\xfe\n", "UTF-8"),
        (gzip.compress(b"ann,tea\n" * 1000)[:40], "damaged"),
    ],
)
def test_bad_files_are_named(tmp_path, content, said):
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    with pytest.raises(ArgumentError, match=said) as raised:
        read_interactions(path)
    assert "bad.csv" in str(raised.value)


def test_a_store_without_names(tmp_path):
    with se.Store.create(None) as store, pytest.raises(NotAStoreError, match="no names"):
        load_names(store)


def test_users_hashed_to_rows(tmp_path):
    path = write(tmp_path, "ann,tea\nbob,wine\nann,wine\n")
    data = read_interactions(path, hash_users=1000)
    assert data.users == {}
    assert data.user_items.shape == (1000, 2)
    ann, bob = se.KeyHasher(1000)(["ann", "bob"]).tolist()
    assert data.user("ann") == ann
    assert data.user("zoe") is None
    assert data.user_items[[ann]].indices.tolist() == [0, 1]
    assert data.user_items[[bob]].indices.tolist() == [1]
    store = se.Store.create(None)
    save_names(store, data, data.user_items)
    assert load_names(store).user("bob") == bob
    store.close()
