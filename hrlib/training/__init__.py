"""Training of the shipped networks. A trainer is a generator of steps; `loop` runs it in a folder and resumes it.

loop, checkpoints, updates, recipe, augment      what trainers share
gan, gan3d, inr_head                             generators: StyleGAN2 and Style-INR-GAN, CIPS-3D, the INR head
perceptual, identity, pose                       VGG16, ResNet50, DeiT; the identity network; the pose reader
starganv2, dualstylegan                          the baselines of Table III
picture_sets, set_files, identity_set, human_heads    training data on disk
shipped_gans, gan_measures, gan_cards, shipping, ship_gan, ship_gan3d, ship_stylists    from a run to data/weights
cli, cli_networks, cli_options                   the commands `hrlab train ...`
"""
