// Memory for whoever plans (residual/rule.h), filled with NaN, for as long as it lives.
#pragma once
#include <functional>
#include <memory>

#include "residual/rule.h"
#include "test.h"

struct PlannedMemory : Planner {
    std::vector<std::unique_ptr<Device<char>>> blocks;
    void request(const std::string&, size_t bytes, std::function<void(void*)> assign) override {
        blocks.push_back(std::make_unique<Device<char>>(bytes));
        blocks.back()->poison();
        assign(blocks.back()->data);
    }
};
