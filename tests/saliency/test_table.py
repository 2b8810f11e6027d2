"""The table of foregrounds: Otsu's masks of its maps, or the masks that it was given."""

import numpy as np
import torch
from request_samples import digest_of, make_table

from online_aug.saliency import SaliencyTable, otsu_masks, upscaled

COUNT, SIDE = 5, 20
DIGESTS = [digest_of(number) for number in (3, 0, 4)]


def quarters():
    """Masks that cover the upper left of the image, of growing width."""
    masks = {digest_of(number): np.zeros((SIDE, SIDE), np.bool_) for number in range(COUNT)}
    for number in range(COUNT):
        masks[digest_of(number)][:10, : 4 * number] = True
    return masks


def table_with_masks():
    maps = dict(zip(make_table(COUNT).digests, make_table(COUNT).maps, strict=True))
    return SaliencyTable.from_maps("v+grabcut-20", maps, quarters())


def test_without_masks_the_foreground_is_above_otsu_s_threshold_of_the_enlarged_map():
    table = make_table(COUNT)
    maps = torch.from_numpy(np.stack([table.maps[table.place(digest)] for digest in DIGESTS]))
    expected = otsu_masks(upscaled(maps, (SIDE, SIDE))).numpy()
    np.testing.assert_array_equal(table.masks(DIGESTS, SIDE), expected)


def test_with_masks_they_are_the_foreground_at_every_size():
    table, masks = table_with_masks(), quarters()
    np.testing.assert_array_equal(
        table.masks(DIGESTS, SIDE), np.stack([masks[digest] for digest in DIGESTS])
    )
    np.testing.assert_array_equal(
        table.masks(DIGESTS, 2 * SIDE),
        np.stack([np.kron(masks[digest], np.ones((2, 2), np.bool_)) for digest in DIGESTS]),
    )


def test_with_masks_the_shares_are_theirs():
    table = table_with_masks()
    two, four = table.place(digest_of(2)), table.place(digest_of(4))
    assert abs(table.source_share(two) - 0.2) < 0.02
    assert abs(table.union_share(two, four) - 0.4) < 0.02


def test_the_nearest_is_told_by_the_masks_if_there_are_some():
    table, masks = table_with_masks(), quarters()
    for place, digest in enumerate(table.digests):
        others = np.array([other for other in range(COUNT) if other != place])
        apart = [(masks[digest] ^ masks[table.digests[other]]).sum() for other in others]
        assert table.nearest(place, others) == others[int(np.argmin(apart))]
