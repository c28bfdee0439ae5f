"""kerasfactory: TSMixer with reversible instance normalization."""


def build():
    from kerasfactory.models import TSMixer

    m = TSMixer(seq_len=24, pred_len=6, n_features=4, n_blocks=2, ff_dim=16)
    m.build((None, 24, 4))
    return m
