"""The procedural world: heads in four domains, landscapes, textures; and pictures by name.

portraits   people with identity, pose, expression, light (photo, cartoon, caricature, anime)
heads       the same people as 3D heads, from any side             scenes      landscapes of any size
textures    labelled pictures for the perceptual networks          sheets      overviews of the world
imagined    people who do not exist, at 1024 pixels
pictures    "portrait:1", "photo:astronaut", "imagined:10", "file:..." -> tensors
"""
