# Prints what the agent asks Docker for: its own configuration, as far as it is constant, merged by its own code with the options
# in the argument.
import ast
import inspect
import json
import sys
import textwrap

from ai.backend.agent.docker.agent import DockerKernelCreationContext, update_nested_dict


def constant(node):
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values)
        return {key.value: known for key, value in pairs if (known := constant(value)) is not None}
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


source = ast.parse(textwrap.dedent(inspect.getsource(DockerKernelCreationContext.start_container)))
names = [node.value for node in ast.walk(source) if isinstance(node, ast.Constant)]
if "agent-docker-container-opts.json" not in names:
    sys.exit("this agent does not read agent-docker-container-opts.json")
assignments = [node for node in ast.walk(source) if isinstance(node, ast.AnnAssign)]
config, = (constant(node.value) for node in assignments if node.target.id == "container_config")
update_nested_dict(config, json.loads(sys.argv[1]))
json.dump(config, sys.stdout)
