# Completes `python -m train.vit ...` with tyro's completion of the program train.vit.
_w2jax() {
  local at=2 program=$words[3]
  local -a first
  if [[ $words[2] == -m ]] && ((CURRENT == 3)); then
    compadd -- $(_w2jax_words) && return
  fi
  if ((CURRENT > 4 && $+functions[_w2jax:$program.$words[4]])); then
    program+=.$words[4] at=3
  fi
  if [[ $words[2] != -m ]] || ((CURRENT == 3 || !$+functions[_w2jax:$program])); then
    $_w2jax_before "$@"
    return
  fi
  shift $at words
  ((CURRENT -= at))
  first=($(_w2jax_words $program))
  if [[ $PREFIX != -* ]] && ((CURRENT == 2 && $#first)); then
    compadd -- $first
  elif [[ $PREFIX != -* && $words[CURRENT-1] != -* ]] && ((!$#first)); then
    _files
  else
    _w2jax:$program "$@"
  fi
}

(($+functions[compdef])) || { autoload -Uz compinit && compinit; }
# All other python commands keep their completion.
[[ ${_comps[python]} == _w2jax ]] || _w2jax_before=${_comps[python]:-_files}
compdef _w2jax python python3
