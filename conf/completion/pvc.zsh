#compdef pvc
# Completions of pvc for zsh: . <(pvc completion zsh), after compinit; or as the file _pvc in a directory of fpath.

_pvc() {
    local -a plain open
    local kind value help files=
    while IFS=$'\t' read -r kind value help; do
        case $kind in
            file) files=1 ;;
            dir) files=2 ;;
            open) open+=("${value//:/\\:}${help:+:$help}") ;;
            plain) plain+=("${value//:/\\:}${help:+:$help}") ;;
        esac
    done < <(PVC_COMPLETE=zsh COMP_LINE="${words[1,CURRENT-1]} $PREFIX" ${words[1]} 2>/dev/null)
    (( $#plain )) && _describe -V pvc plain
    (( $#open )) && _describe -V pvc open -S ''
    [[ $files == 1 ]] && _files
    [[ $files == 2 ]] && _files -/
    return 0
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _pvc "$@"
else
    compdef _pvc pvc
fi
