"""keras-unet-collection: att_unet_2d."""


def build():
    from keras_unet_collection import models

    return models.att_unet_2d(
        (64, 64, 3),
        filter_num=[8, 16, 24, 32],
        n_labels=3,
        stack_num_down=1,
        stack_num_up=1,
        activation="ReLU",
        atten_activation="ReLU",
        attention="add",
        output_activation="Softmax",
        batch_norm=True,
        pool=True,
        unpool=True,
    )
