"""`put` uploads a store to a URL."""

from __future__ import annotations

import os
from collections.abc import Callable

from featx.errors import Parameter, StoreError
from featx.progress import Progress, preparing, shown
from featx.store.reader import FeatureStore
from featx.store.remote import NotAStore, RemoteStore
from featx.urls import is_url
from featx.urls import shown as shown_url


def put(
    store: FeatureStore | str | os.PathLike,
    url: str,
    *,
    replace: bool = False,
    progress: bool | Callable[[Progress], None] = True,
) -> bool:
    """Upload a store to a URL, from which `FeatureStore(url)` opens it anywhere.

    The store's checksums are verified before, and size, seal and metadata of what has arrived after the upload. Nothing
    has the name of the URL before it is whole.

    Parameters
    ----------
    store : FeatureStore or path
    url : str
        "s3://bucket/photos.h5", or another URL that fsspec can write to.
    replace : bool
        Replace another file that is there, and upload the store again if it is this one.
    progress : bool or callable
        Show progress on stderr, or call this function with each update, a `featx.Progress` whose `phase` says how many
        bytes are uploaded.

    Returns
    -------
    bool
        Whether it was uploaded; False if this store was there already.

    Raises
    ------
    StoreError
        Another file is there, the URL cannot be written to, or what has arrived is not the store.
    DamageError
        The store is damaged.

    Examples
    --------
    >>> put("photos.h5", "s3://bucket/photos.h5")    # doctest: +SKIP
    True
    """
    opened = store if isinstance(store, FeatureStore) else FeatureStore(store, progress=progress)
    if not is_url(url) or url.endswith("/"):
        target = shown_url(url) if is_url(url) else url
        raise StoreError(f"a store is put to the URL of a file, such as s3://bucket/{opened.path.name}; got {target!r}")
    remote, seal = RemoteStore(url), opened._contents.mapped.seal
    remote.refuse_unwritable()
    with shown(progress) as show:
        on_phase = preparing(show)
        on_phase(f"looking at {remote.url}")
        is_other = ""
        try:
            there = remote.seal()
            if there == seal and not replace and remote.matches(seal):
                return False
            is_other = "" if there in (None, seal) else "is another store"
        except NotAStore as error:
            is_other = str(error).removeprefix(f"{remote.url} ").partition(";")[0]
        if is_other and not replace:
            raise StoreError(
                f"{remote.url} {is_other}; choose another URL, or replace it with ", Parameter("replace", True)
            )
        on_phase(f"checking {opened.path.name}")
        opened.verify()
        remote.upload(opened.path, seal, on_phase)
        on_phase(f"checking {remote.url}")
        if not remote.matches(seal):
            raise StoreError(f"{remote.url} is not the store that was uploaded; put it again")
    return True
