# Completions of pvc for bash (4.4 or later): . <(pvc completion bash)

_pvc_complete() {
    local kind value word=${COMP_WORDS[COMP_CWORD]}
    COMPREPLY=()
    while IFS=$'\t' read -r kind value _; do
        case $kind in
            # A name with blanks and the like stands for one word only if it is quoted, unless the user has begun to.
            open | plain) [[ $value != *[!A-Za-z0-9_.,:@%+=/[\]-]* || $word == [\"\']* ]] || printf -v value %q "$value" ;;&
            file) compopt -o default ;;
            dir) compopt -o dirnames ;;
            open) compopt -o nospace; COMPREPLY+=("$value") ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done < <(PVC_COMPLETE=bash COMP_LINE="${COMP_LINE:0:COMP_POINT}" "$1" 2>/dev/null)
}

complete -o nosort -F _pvc_complete pvc
