// OpenAI's own client for JavaScript. The call is named by the first argument; what it gives is printed as JSON.
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const [, , name, baseURL, model, apiKey] = process.argv;
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 60_000 });
const user = (content) => [{ role: "user", content }];
const sum = { model, messages: user("12+34="), temperature: 0 };
const parameters = {
  type: "object",
  properties: { city: { type: "string", enum: ["Paris", "Rome"] } },
  required: ["city"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "get_weather", parameters, strict: true } }];
const get_weather = ({ city }) => ({ Paris: "sunny, 21 degrees", Rome: "rain, 12 degrees" })[city];
const told = async (promise) => {
  try {
    await promise;
    return null;
  } catch (error) {
    return { name: error.constructor.name, status: error.status ?? null, code: error.code ?? null, text: error.message };
  }
};
const endless = { model, prompt: "12+34=", max_tokens: 900, ignore_eos: true };

const calls = {
  answer: async () => (await client.chat.completions.create(sum)).choices[0].message.content,
  streaming: async () => {
    const pieces = [];
    let usage = null;
    const options = { stream: true, stream_options: { include_usage: true } };
    for await (const chunk of await client.chat.completions.create({ ...sum, ...options })) {
      pieces.push(chunk.choices[0]?.delta?.content ?? "");
      usage = chunk.usage ?? usage;
    }
    return { text: pieces.join(""), usage };
  },
  completions: async () => (await client.completions.create({ model, prompt: "12+34=", temperature: 0 })).choices[0].text,
  sampling: async () => {
    const ask = { ...sum, messages: user("copy abc7="), stop: ["c"], seed: 3, n: 2, logprobs: true, top_logprobs: 2 };
    const { choices } = await client.chat.completions.create(ask);
    return choices.map(({ message, logprobs }) => [message.content, logprobs.content[0].top_logprobs.length]);
  },
  json_mode: async () => {
    const messages = user("Give me the weather in Paris as JSON.");
    const ask = { model, messages, response_format: { type: "json_object" }, max_tokens: 60 };
    return JSON.parse((await client.chat.completions.create(ask)).choices[0].message.content);
  },
  parse: async () => {
    const form = zodResponseFormat(z.object({ city: z.string(), degrees: z.number().int() }), "weather");
    const messages = user("Give me the weather in Paris as JSON.");
    const ask = { model, messages, response_format: form, max_tokens: 60 };
    return (await client.chat.completions.parse(ask)).choices[0].message.parsed;
  },
  named: async () => {
    const tool_choice = { type: "function", function: { name: "get_weather" } };
    const done = await client.chat.completions.create({ ...sum, tools, tool_choice, max_tokens: 600 });
    return done.choices[0].message.tool_calls.map((call) => JSON.parse(call.function.arguments).city);
  },
  required: async () => {
    const done = await client.chat.completions.create({ ...sum, tools, tool_choice: "required", max_tokens: 600 });
    return done.choices[0].message.tool_calls.map((call) => JSON.parse(call.function.arguments).city);
  },
  streamed_tools: async () => {
    const messages = user("What is the weather in Paris and in Rome?");
    const stream = client.chat.completions.stream({ model, messages, tools });
    const done = await stream.finalChatCompletion();
    return done.choices[0].message.tool_calls.map((call) => call.function.parsed_arguments.city);
  },
  run_tools: async () => {
    const tool = { type: "function", function: { function: get_weather, parse: JSON.parse, ...tools[0].function } };
    const messages = user("What is the weather in Paris?");
    return await client.chat.completions.runTools({ model, messages, tools: [tool] }).finalContent();
  },
  reasoning: async () => {
    const ask = { model, messages: user("Which is larger, 9 or 11?") };
    const { message } = (await client.chat.completions.create(ask)).choices[0];
    let streamed = "";
    for await (const chunk of await client.chat.completions.create({ ...ask, stream: true })) {
      streamed += chunk.choices[0]?.delta?.reasoning ?? "";
    }
    return [message.reasoning, message.content, streamed];
  },
  models: async () => (await client.models.list()).data.map((listed) => listed.id),
  responses: async () => {
    const whole = await client.responses.create({ model, input: "12+34=" });
    let streamed = "";
    for await (const event of client.responses.stream({ model, input: "12+34=" })) {
      streamed += event.type === "response.output_text.delta" ? event.delta : "";
    }
    return [whole.output_text, streamed];
  },
  embeddings: () => told(client.embeddings.create({ model, input: "12+34=" })),
  overflow: () => told(client.chat.completions.create({ model, messages: user("1+".repeat(4000)) })),
  wrong_key: () => told(client.withOptions({ apiKey: "wrong" }).chat.completions.create(sum)),
  unknown_model: () => told(client.chat.completions.create({ ...sum, model: "gpt-5" })),
  timeout: () => told(client.completions.create(endless, { timeout: 200 })),
  gone: async () => {
    for await (const chunk of await client.completions.create({ ...endless, stream: true })) {
      return chunk.object; // leaving the loop closes the connection
    }
  },
  many: async () => {
    const numbers = Array.from({ length: 8 }, (_, place) => 10 + place);
    const ask = (number) => client.chat.completions.create({ ...sum, messages: user(`${number}+5=`) });
    return (await Promise.all(numbers.map(ask))).map((done) => done.choices[0].message.content);
  },
};

console.log(JSON.stringify(await calls[name]()));
