"""The procedural world: heads in four domains, landscapes, textures; and pictures by name.

portraits   people with identity, pose, expression, light (photo, cartoon, caricature, anime)
heads       the same people as 3D heads, from any side             scenes      landscapes of any size
textures    labelled pictures for the perceptual networks          sheets      overviews of the world
pictures    "portrait:1", "photo:astronaut", "file:..." -> tensors
"""
