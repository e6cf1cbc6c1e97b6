"""Machine and configuration → can this machine run that?"""
