# Shapes: N rows, D columns.
import torch

from pathmoe.bench.saved import saved_bytes


def test_product_saves_the_factors_that_do_not_live_anyway() -> None:
    x_ND = torch.randn(10, 4, requires_grad=True)
    scale_ND = torch.randn(10, 4)
    nbytes = 10 * 4 * 4

    def product() -> torch.Tensor:
        return (x_ND * scale_ND).exp()

    # exp keeps its output, the product keeps `scale` (and x where scale would need a gradient).
    assert saved_bytes(product) == 2 * nbytes
    assert saved_bytes(product, (scale_ND,)) == nbytes


def test_views_of_one_storage_count_once() -> None:
    x_ND = torch.randn(8, 4, requires_grad=True)

    def two_views() -> torch.Tensor:
        y_ND = x_ND.sigmoid()
        return y_ND[:4] * y_ND[4:]

    assert saved_bytes(two_views) == 8 * 4 * 4
