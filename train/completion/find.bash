# Completes `python -m train.vit ...` with tyro's completion of the program train.vit.
_w2jax() {
  local at=2 program=${COMP_WORDS[2]} current=${COMP_WORDS[COMP_CWORD]} words
  if [[ ${COMP_WORDS[1]} == -m ]] && ((COMP_CWORD == 2)); then
    COMPREPLY=($(compgen -W "$(_w2jax_words)" -- "$current"))
    ((${#COMPREPLY[@]})) && return
  fi
  if ((COMP_CWORD > 3)) && complete -p "$program.${COMP_WORDS[3]}" &>/dev/null; then
    program+=.${COMP_WORDS[3]} at=3
  fi
  if [[ ${COMP_WORDS[1]} != -m || ! $(complete -p -- "$program" 2>/dev/null) =~ -F\ ([^ ]+) ]] || ((COMP_CWORD == 2)); then
    COMPREPLY=()
    [[ -z $_w2jax_before ]] || "$_w2jax_before" "$@"
    return
  fi
  COMP_WORDS=("${COMP_WORDS[@]:at}")
  ((COMP_CWORD -= at))
  words=$(_w2jax_words "$program")
  if [[ $current != -* && $words ]] && ((COMP_CWORD == 1)); then
    COMPREPLY=($(compgen -W "$words" -- "$current"))
  elif [[ $current != -* && ! $words && ${COMP_WORDS[COMP_CWORD - 1]} != -* ]]; then
    COMPREPLY=() # -o default: files
  else
    "${BASH_REMATCH[1]}"
    [[ -n ${COMPREPLY[0]} ]] || COMPREPLY=()
    [[ ! -e ${COMPREPLY[0]} ]] || compopt -o filenames 2>/dev/null
  fi
}

# All other python commands keep their completion. bash-completion loads it on first use, so load it now.
{ _comp_load python || __load_completion python; } &>/dev/null
if [[ $(complete -p python 2>/dev/null) =~ -F\ ([^ ]+) && ${BASH_REMATCH[1]} != _w2jax ]]; then
  _w2jax_before=${BASH_REMATCH[1]}
fi
complete -o default -F _w2jax python python3
