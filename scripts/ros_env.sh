#!/usr/bin/env bash
# ROS 2 from the virtual environment's wheels, and what colcon built into install/ on top of it.
#   source scripts/ros_env.sh          into this shell (bash)
#   scripts/ros_env.sh COMMAND ...     for one command
# Another ROS (a sourced /opt/ros) is taken out of the environment: two in one process cannot work.

_recon4d_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
_recon4d_venv=${RECON4D_VENV:-$_recon4d_root/.venv}
_recon4d_install=${RECON4D_INSTALL:-$_recon4d_root/install}

# The entries of a path list that belong to no ROS prefix, no colcon workspace, and hold no sitecustomize (colcon's and pip's).
_recon4d_foreign() {
  local entry prefix keep=() foreign
  IFS=: read -ra _recon4d_entries <<< "${1:-}"
  IFS=: read -ra _recon4d_prefixes <<< "${AMENT_PREFIX_PATH:-}:${COLCON_PREFIX_PATH:-}:/opt/ros:$_recon4d_venv:$_recon4d_install:$(dirname "$_recon4d_install")/build"
  for entry in "${_recon4d_entries[@]}"; do
    foreign=yes
    [ -n "$entry" ] && [ ! -e "$entry/sitecustomize.py" ] || foreign=no
    for prefix in "${_recon4d_prefixes[@]}"; do
      if [ -n "$prefix" ] && [[ "$entry/" == "$prefix/"* ]]; then foreign=no; fi
    done
    [ "$foreign" = no ] || keep+=("$entry")
  done
  (IFS=:; echo "${keep[*]:-}")
}

_recon4d_ld=$(_recon4d_foreign "${LD_LIBRARY_PATH:-}")
_recon4d_py=$(_recon4d_foreign "${PYTHONPATH:-}")
_recon4d_path=$(_recon4d_foreign "$PATH")
unset AMENT_CURRENT_PREFIX COLCON_PREFIX_PATH COLCON_CURRENT_PREFIX

# The wheels' start-up hook would restart every interpreter once, to set LD_LIBRARY_PATH in an order that changes from start to start,
# and its guard would then be inherited by children of another environment: both are set here, always alike.
export _ROS_WHEELS_BOOTSTRAP_COMPLETE=1
export LD_LIBRARY_PATH=$_recon4d_venv/lib
for _recon4d_libs in "$_recon4d_venv"/lib/python3.*/site-packages/ros_*.libs; do
  LD_LIBRARY_PATH+=:$_recon4d_libs
done
LD_LIBRARY_PATH+=${_recon4d_ld:+:$_recon4d_ld}

export PATH=$_recon4d_venv/bin:$_recon4d_path
unset PYTHONPATH # an empty one would, once something is put before it, stand for the current folder
if [ -n "$_recon4d_py" ]; then export PYTHONPATH=$_recon4d_py; fi
export AMENT_PREFIX_PATH=$_recon4d_venv
export CMAKE_PREFIX_PATH=$_recon4d_venv
export ROS_VERSION=2 ROS_PYTHON_VERSION=3 ROS_DISTRO=jazzy
export RMW_IMPLEMENTATION=rmw_fastrtps_cpp # the only one among the wheels

if [ -f "$_recon4d_install/local_setup.bash" ]; then
  # shellcheck disable=SC1091
  . "$_recon4d_install/local_setup.bash"
fi
unset _recon4d_root _recon4d_venv _recon4d_install _recon4d_entries _recon4d_prefixes _recon4d_ld _recon4d_py _recon4d_path _recon4d_libs
unset -f _recon4d_foreign

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  exec "$@"
fi
